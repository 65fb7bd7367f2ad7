"""What pip installs, away from the clone: the two commands, and everything else that a person types."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from data_helpers import ROOT, assert_one_line_error, write_wav

pytestmark = pytest.mark.slow

HOME = "import audiocls; print(audiocls.__file__, audiocls.TrainConfig.__name__)"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a wheel of this tree installed in it, and the commands in bin/."""
    folder = tmp_path_factory.mktemp("install") / "site"
    options = ["--no-index", "--no-build-isolation", "--no-deps", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(folder), str(ROOT)]
    subprocess.run(command, check=True, timeout=60)
    return folder


def run(path: Path, cwd: Path, *command: object) -> subprocess.CompletedProcess[str]:
    """Python with these arguments in `cwd`, audiocls taken from `path`."""
    environment = os.environ | {"PYTHONPATH": str(path), "XDG_CACHE_HOME": str(cwd / "cache")}
    line = [sys.executable, *map(str, command)]
    return subprocess.run(
        line, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_a_wheel_holds_the_package_and_its_scripts_and_nothing_else(site: Path) -> None:
    assert {path.name for path in site.iterdir()} == {"audiocls", "audiocls-0.1.0.dist-info", "bin"}
    for name in ("train.py", "infer.py"):
        assert (site / "audiocls" / "scripts" / name).read_bytes() == (ROOT / name).read_bytes()
    files = {path.relative_to(ROOT) for path in (ROOT / "audiocls").rglob("*") if path.is_file()}
    assert not [file for file in files if "__pycache__" not in file.parts and not (site / file).exists()]
    assert list(site.glob("*.dist-info/licenses/LICENSE"))


def test_what_is_installed_trains_classifies_and_reports_as_it_says(site: Path, tmp_path: Path) -> None:
    train, infer = (site / "bin" / f"audiocls-{name}" for name in ("train", "infer"))
    assert run(site, tmp_path, train, "--help").stdout.startswith("usage: audiocls-train [options]")
    assert_one_line_error(run(site, tmp_path, infer, "--nope"), 2, "See audiocls-infer --help.")

    done = run(site, tmp_path, train, "--demo", "--max-steps", "2", "--device", "cpu", "--output-dir", "run")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].startswith("  audiocls-infer run ")
    assert "<code>audiocls-train --config run.json</code>" in (tmp_path / "run" / "report.html").read_text()

    clip = write_wav(tmp_path / "clip.wav", seconds=0.5)
    answer = run(site, tmp_path, infer, "run", clip, "--device", "cpu")
    assert answer.returncode == 0, answer.stderr
    report = run(site, tmp_path, "-m", "audiocls.reporting.report", "run")
    assert report.stdout == "run/report.html\n", report.stderr


def test_what_is_installed_compares_runs_of_its_own_script(site: Path, tmp_path: Path) -> None:
    program = run(site, tmp_path, "-c", "from audiocls.trials import TRAIN; print(TRAIN)").stdout.strip()
    assert program == str(site / "audiocls" / "scripts" / "train.py")
    assert run(site, tmp_path, program, "--help").stdout.startswith("usage: audiocls-train [options]")


@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_a_clone_in_the_current_folder_hides_nothing(kind: str, site: Path, tmp_path: Path) -> None:
    (tmp_path / "audiocls").symlink_to(ROOT)  # as `git clone` leaves it: the package is one folder further in
    path = site
    if kind == "editable":  # the folder that is put on the path by what `pip install -e` installs
        build = f"from hatchling.build import build_editable; print(build_editable({str(tmp_path)!r}))"
        command = [sys.executable, "-c", build]
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
        with zipfile.ZipFile(tmp_path / done.stdout.splitlines()[-1]) as wheel:
            path = Path(wheel.read("_audiocls.pth").decode().strip())
        assert path == ROOT
    home = run(path, tmp_path, "-c", HOME)
    assert home.stdout == f"{path / 'audiocls' / '__init__.py'} TrainConfig\n", home.stderr
    usage = run(path, tmp_path, "-m", "audiocls.compare", "--help").stdout
    assert usage.startswith("usage: python -m audiocls.compare A B")
