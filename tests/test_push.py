"""--push-to-hub against a loopback Hub: the whole model in one commit; what stands in the way in one line.

HF_ENDPOINT is read when huggingface_hub is imported, so its clients are processes of their own.
"""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from data_helpers import ROOT, assert_one_line_error, run_script
from hub_uploads import UploadHub

from audiocls.errors import UserError
from audiocls.hub import check_login, say_push
from audiocls.storage import complete_folder

pytestmark = pytest.mark.slow

QUICK = ("--demo", "--max-steps", "2", "--output-dir", "run")
PUSH = (
    "import sys; from pathlib import Path; "
    "from audiocls.errors import exit_code_of; from audiocls.hub import push; "
    "sys.exit(exit_code_of(lambda: print(push(Path(sys.argv[1]), sys.argv[2])) or 0))"
)


@pytest.fixture
def hub() -> Iterator[UploadHub]:
    with UploadHub() as server:
        yield server


def train(
    hub: UploadHub, cwd: Path, *flags: str, token: str | None = "hf_write"
) -> subprocess.CompletedProcess:
    environment = os.environ | hub.environment(cwd / "hf", token) | {"XDG_CACHE_HOME": str(cwd / "cache")}
    return run_script("train.py", *QUICK, *flags, cwd=cwd, env=environment, timeout=120)


def test_a_run_ends_with_the_best_model_and_its_card_on_the_hub(hub: UploadHub, tmp_path: Path) -> None:
    done = train(hub, tmp_path, "--push-to-hub", "sounds")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"uploaded to {hub.endpoint}/me/sounds"
    best = tmp_path / "run" / "best"
    arrived = hub.files["me/sounds"]
    assert set(arrived) == {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}
    for name, content in arrived.items():
        assert content == (best / name).read_bytes()
    assert 'model="me/sounds"' in arrived["README.md"].decode()
    assert len(hub.large) == 1
    assert hub.commits == ["me/sounds"]
    assert hub.requests[0] == "GET /api/whoami-v2"  # before training

    # Once more, by another process, into the same repository: what has changed is replaced.
    (best / "README.md").write_text("---\nlibrary_name: transformers\n---\nanother")
    environment = os.environ | hub.environment(tmp_path / "hf") | {"PYTHONPATH": str(ROOT)}
    again = run_script("-c", PUSH, str(best), "me/sounds", env=environment)
    assert again.returncode == 0, again.stderr
    assert arrived["README.md"].endswith(b"another")
    assert hub.commits == ["me/sounds", "me/sounds"]


def test_a_dry_run_names_every_file_and_asks_nobody(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with complete_folder(tmp_path / "best") as unfinished:
        (unfinished / "config.json").write_text("{}")
    (tmp_path / "best" / "README.md").write_text("a card")
    say_push(tmp_path / "best", "me/sounds", dry_run=True)
    assert capsys.readouterr().out.splitlines() == [
        "would upload to me/sounds: README.md, 6 bytes",
        "would upload to me/sounds: config.json, 2 bytes",
    ]


@pytest.mark.parametrize(
    ("token", "says"), [(None, "run `hf auth login`, or set HF_TOKEN"), ("hf_stolen", "refuses your token")]
)
def test_without_a_login_nothing_is_begun(
    token: str | None, says: str, hub: UploadHub, tmp_path: Path
) -> None:
    done = train(hub, tmp_path, "--push-to-hub", "sounds", token=token)
    assert_one_line_error(done, 2, says)
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_a_repository_is_refused() -> None:
    with pytest.raises(UserError, match="a/b/c is no name of a repository"):
        check_login("a/b/c")
    with pytest.raises(UserError, match="unset HF_HUB_OFFLINE"):
        check_login("sounds")


def test_a_failed_upload_leaves_the_model_and_says_how_to_try_again(hub: UploadHub, tmp_path: Path) -> None:
    with complete_folder(tmp_path / "best") as unfinished:
        (unfinished / "config.json").write_text("{}")
    hub.is_broken = True
    environment = os.environ | hub.environment(tmp_path / "hf") | {"PYTHONPATH": str(ROOT)}
    done = run_script("-c", PUSH, str(tmp_path / "best"), "me/sounds", env=environment)
    assert_one_line_error(done, 4, "hf upload me/sounds", "storage limit")
