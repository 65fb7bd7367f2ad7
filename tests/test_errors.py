"""One line for the reader: whatever a name, a label or an argument holds."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from data_helpers import assert_one_line_error, run_script

from audiocls.errors import LONGEST_LINE, InputOutputFailed, one_line
from audiocls.training.run_folder import check_same


def test_one_line_shows_what_a_terminal_would_obey() -> None:
    text = "a\nb\r\x1b[2J\x9b31m\u202e\u2066\x00\x7f\udce9 caf\u00e9"
    assert one_line(text) == "a b \\x1b[2J\\x9b31m\\u202e\\u2066\\x00\\x7f\\udce9 caf\u00e9"


def test_one_line_has_an_end() -> None:
    assert len(one_line("x" * 10**6)) < LONGEST_LINE + 100


def test_an_argument_with_escapes_or_too_long_is_told_in_one_plain_line() -> None:
    for name in ("./\x1b[31m\nred\u202e", "./" + "x" * 5_000, "/" + "y/" * 3_000):
        for arguments in (("--dataset", name), ("--demo", "--model", name), ("--demo", f"--{name}")):
            done = run_script("train.py", *arguments)
            assert done.returncode == 2
            assert done.stderr.count("\n") == 1
            assert done.stderr.rstrip("\n").isprintable()


def test_names_that_no_file_can_have_are_told_in_one_line() -> None:
    for name in ("~nobody-of-that-name/clips", "x" * 300):
        done = run_script("train.py", "--model", "tiny", "--output-dir", "run", "--dataset", name)
        assert_one_line_error(done, 2, name)
        assert_one_line_error(run_script("infer.py", name, "a.wav"), 2, name)
    for name in ("x" * 300, "x/" + "y" * 300):
        assert_one_line_error(run_script("train.py", "--demo", "--output-dir", name), 4, name)
        assert_one_line_error(run_script("train.py", "--demo", "--cache-dir", name), 4, name)
    for number in ("9" * 30, "9" * 400):
        assert_one_line_error(run_script("train.py", "--demo", "--batch-size", number), 2, "--batch-size")


@pytest.mark.parametrize("name", ["a\0b", "\ud800"])
def test_a_name_in_a_config_file_that_no_file_can_have_is_told_in_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps({"output_dir": name}))
    done = run_script("train.py", "--demo", "--config", str(tmp_path / "c.json"))
    assert_one_line_error(done, 2, "--output-dir")


def test_without_standard_streams_a_program_still_does_its_work(tmp_path: Path) -> None:
    code = """
import os, sys
from audiocls.errors import exit_code_of
def main():
    assert sys.stdin.read() == ""
    print("lost"); print("lost", file=sys.stderr); sys.stderr.isatty()
    open("done", "w").write(str([sys.stdout.fileno(), sys.stderr.fileno()]))
    return 0
sys.exit(exit_code_of(main))
"""
    done = run_script("-c", code, cwd=tmp_path, preexec_fn=lambda: os.closerange(0, 3))
    assert done.returncode == 0
    assert (tmp_path / "done").read_text() == "[1, 2]"


def test_output_that_nobody_reads_ends_the_program_quietly() -> None:
    code = """
import os, sys
from audiocls.errors import exit_code_of
reader, writer = os.pipe()
os.dup2(writer, 1)
os.close(reader)
def main():
    while True:
        print("line", flush=True)
sys.exit(exit_code_of(main))
"""
    done = run_script("-c", code)
    assert (done.returncode, done.stderr) == (4, "")


def test_a_config_file_or_a_run_that_is_nested_without_end_is_told_in_one_line(tmp_path: Path) -> None:
    for suffix in ("json", "toml"):
        (tmp_path / f"deep.{suffix}").write_text("a = " * (suffix == "toml") + "[" * 100_000)
        done = run_script("train.py", "--demo", "--config", str(tmp_path / f"deep.{suffix}"))
        assert_one_line_error(done, 2, f"deep.{suffix} is not valid {suffix}")
    for content in ("[" * 100_000, "[]", '{"config": 1}'):
        (tmp_path / "run.json").write_text(content)
        with pytest.raises(InputOutputFailed, match="Is it a run's"):
            check_same(tmp_path, {"config": {"seed": 1}})


def test_what_a_library_prints_does_not_mix_with_results() -> None:
    code = """
import os
from audiocls.inference.output import results_file
with results_file(None) as file:
    file.write("result \\u00e9\\n")
    os.write(1, b"a library\\n")
    print("another")
"""
    done: subprocess.CompletedProcess[str] = run_script("-c", code)
    assert done.stdout == "result \u00e9\n"
    assert done.stderr.splitlines() == ["a library", "another"]
