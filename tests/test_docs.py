"""README.md and docs/: links lead somewhere, the loop's excerpt is the loop, commands' flags are there."""

import re
import shlex
import sys
from pathlib import Path

import pytest
from data_helpers import ROOT

from audiocls.flags import parse_infer, parse_train

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks/README.md"]
sys.path.insert(0, str(ROOT / "docs"))


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings_that_are_there(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        other = (page.parent / path).resolve() if path else page
        assert other.exists(), target
        assert not anchor or anchor in anchors(other), target


def test_the_readmes_loop_is_the_loop() -> None:
    code = re.search(
        r"```python\n(for step, batches in steps:.*?)```", (ROOT / "README.md").read_text(), re.DOTALL
    )
    assert code is not None
    loop = (ROOT / "audiocls/training/loop.py").read_text()
    assert "".join(f"    {line}\n" if line else "\n" for line in code[1].splitlines()) in loop


def commands() -> list[list[str]]:
    """Each whole command of train.py and infer.py that a page shows."""
    found = []
    for page in PAGES:
        for block in re.findall(r"^```(?:sh|console)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                line = line.removeprefix("$ ")
                if re.match(r"(python|torchrun|.*&& \S*python|find .*\|).* (train|infer)\.py ?", line):
                    words = shlex.split(line, comments=True)
                    if "..." not in words and "--help" not in words:
                        script = next(
                            n for n, word in enumerate(words) if re.fullmatch(r"(train|infer)\.py", word)
                        )
                        found.append(words[script:])
    return found


@pytest.mark.parametrize("command", commands(), ids=shlex.join)
def test_commands_are_understood(command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their flags and values are; the files that they name are made here."""
    monkeypatch.chdir(tmp_path)
    for word in command[1:]:
        if word.endswith("/"):
            Path(word).mkdir(parents=True)
        elif word.endswith((".csv", ".toml")):
            Path(word).touch()
    (parse_train if command[0] == "train.py" else parse_infer)(command[1:])


def test_there_are_commands_to_try() -> None:
    assert len(commands()) >= 15


def test_the_settings_are_as_config_py_has_them() -> None:
    from make_reference import PAGE, with_settings

    assert PAGE.read_text() == with_settings(PAGE.read_text()), "python docs/make_reference.py"
