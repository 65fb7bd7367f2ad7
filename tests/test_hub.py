"""The guide's run for real, against a loopback Hub: found, not found, gone, and never anybody else asked.

Each of these processes imports torch and transformers, so there are few of them, and those that do not wait
for one another run side by side.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from data_helpers import ROOT, assert_one_line_error, unbroken, write_wav
from hub_content import INTENTS, write_minds14, write_tiny_wav2vec2
from hub_server import HubServer, Request
from huggingface_hub import ModelCard
from rank_helpers import environment as ranks_environment
from rank_helpers import free_port

pytestmark = pytest.mark.slow

Finished = subprocess.CompletedProcess[str]

MODEL_FILES = {"config.json", "model.safetensors", "preprocessor_config.json"}
# Everything the Hub may be asked for a model and a data set; what is not here was not to be asked.
ASKED = (
    "/api/models/facebook/wav2vec2-base",
    "/facebook/wav2vec2-base/resolve/",
    "/api/datasets/PolyAI/minds14",
    "/datasets/PolyAI/minds14/resolve/",
)

# Many questions in one process, which is one of its own because HF_ENDPOINT is read on import.
QUESTIONS = """
import contextlib, io, json, sys
from pathlib import Path
sys.path.insert(0, ROOT)
import train
from audiocls.data.sources import Columns, load_source
from audiocls.errors import exit_code_of
from audiocls.model.loading import load_for_training, open_backbone

def run(*flags):
    sys.argv = ["train.py", *flags]
    with contextlib.redirect_stderr(io.StringIO()) as stderr:
        return exit_code_of(train.main), stderr.getvalue()

def clips(revision):
    columns, cache = Columns(), Path("cache")
    source = load_source("PolyAI/minds14", columns, config="en-US", revision=revision, cache_dir=cache)
    return len(source.splits["train"])

def weights(revision):
    loaded = load_for_training(open_backbone("facebook/wav2vec2-base", revision), ["a", "b"], seed=0)
    return loaded.model.wav2vec2.encoder.layers[0].attention.q_proj.weight.sum().item()

answers = {
    "no data set": run("--model", "tiny", "--dataset", "PolyAI/nothing"),
    "no model": run("--model", "facebook/nothing", "--dataset", "demo"),
    "no data set revision": run("--model", "tiny", "--dataset-revision", "v9"),
    "no model revision": run("--model-revision", "v9", "--dataset", "demo"),
    "no config": run("--model", "tiny", "--dataset-config", "xx-XX"),
    "no column": run("--model", "tiny", "--label-column", "intent"),
    "clips": {str(revision): clips(revision) for revision in (None, "main", "v2")},
    "weights": {str(revision): weights(revision) for revision in (None, "main", "v2")},
}
print(json.dumps(answers))
"""


def start(arguments: list[str], environment: dict[str, str], cwd: Path) -> subprocess.Popen[str]:
    command, pipe = [sys.executable, *arguments], subprocess.PIPE
    return subprocess.Popen(
        command, env=os.environ | environment, cwd=cwd, stdout=pipe, stderr=pipe, text=True
    )


def finish(process: subprocess.Popen[str], timeout: float = 90) -> Finished:
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def closed_port() -> int:
    """A port that refuses connections."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@dataclass
class Guide:
    """The guide's run: what it said, wrote and asked for."""

    finished: Finished
    infer: Finished
    cwd: Path
    environment: dict[str, str]
    requests: list[Request]
    other_hosts: list[Request]

    @property
    def folder(self) -> Path:
        return self.cwd / "runs" / "minds14-wav2vec2-base"

    def records(self, kind: str) -> list[dict[str, Any]]:
        lines = (self.folder / "metrics.jsonl").read_text().splitlines()
        return [record for record in map(json.loads, lines) if record["kind"] == kind]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    root = tmp_path_factory.mktemp("hub")
    write_minds14(root)
    write_tiny_wav2vec2(root)
    write_minds14(root, {"en-US": 28}, revision="v2")
    write_tiny_wav2vec2(root, revision="v2", seed=1)
    with HubServer(root) as server:
        yield server


@pytest.fixture(scope="module")
def guide(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Guide:
    """`python train.py`, two steps of it, then `python infer.py` on its run."""
    home = tmp_path_factory.mktemp("guide")
    cwd = home / "work"
    cwd.mkdir()
    environment = {**hub.environment(home / "huggingface"), "XDG_CACHE_HOME": str(home / "cache")}
    asked_before = len(hub.requests)
    finished = finish(start([str(ROOT / "train.py"), "--max-steps", "2"], environment, cwd))
    write_wav(cwd / "a clip.wav", seconds=1, seed=1)
    run_folder = "runs/minds14-wav2vec2-base"
    infer = finish(start([str(ROOT / "infer.py"), run_folder, "a clip.wav"], environment, cwd))
    requests = hub.requests[asked_before:]
    return Guide(finished, infer, cwd, environment, requests, list(hub.other_hosts))


@pytest.fixture(scope="module")
def answers(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What comes of asking for what the Hub does not have, and for revisions."""
    home = tmp_path_factory.mktemp("questions")
    environment = {**hub.environment(home / "huggingface"), "XDG_CACHE_HOME": str(home / "cache")}
    code = QUESTIONS.replace("ROOT", repr(str(ROOT)))
    finished = finish(start(["-c", code], environment, home))
    assert finished.returncode == 0, finished.stderr
    assert not hub.other_hosts
    return json.loads(finished.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def without_hub(guide: Guide, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Finished, float]]:
    """The guide's run where the Hub refuses the connection or is not to be asked, and its seconds."""
    home = tmp_path_factory.mktemp("without-hub")
    endpoint = f"http://127.0.0.1:{closed_port()}"
    caches = ("HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "XDG_CACHE_HOME")
    empty = {name: str(home / name.lower()) for name in caches}
    gone = {**guide.environment, "HF_ENDPOINT": endpoint}
    runs = {
        "warm": ([], gone),
        "warm, a revision asked for": (["--dataset-revision", "v2"], gone),
        "empty": ([], {**gone, **empty}),
        "empty, told to be offline": ([], {**guide.environment, **empty, "HF_HUB_OFFLINE": "1"}),
        "empty, tiny model": (["--model", "tiny"], {**gone, **empty}),
    }
    results = {}
    # Two at a time, one for each of two cores.
    names = list(runs)
    for pair in (names[:1], names[1:3], names[3:]):
        started = {}
        for name in pair:
            flags, environment = runs[name]
            folder = str(home / "runs" / name.replace(" ", "-"))
            arguments = [str(ROOT / "train.py"), "--max-steps", "1", "--output-dir", folder, *flags]
            started[name] = time.perf_counter(), start(arguments, environment, guide.cwd)
        for name, (began, process) in started.items():
            results[name] = finish(process), time.perf_counter() - began
    return results


# The guide's run


def test_two_ranks_ask_the_hub_no_more_than_one_process(guide: Guide, hub: HubServer, tmp_path: Path) -> None:
    environment = {**hub.environment(tmp_path / "huggingface"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    asked_before, port = len(hub.requests), free_port()
    arguments = [str(ROOT / "train.py"), "--max-steps", "2"]
    ranks = [start(arguments, environment | ranks_environment(rank, 2, port), tmp_path) for rank in range(2)]
    first, second = map(finish, ranks)
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert Counter(hub.requests[asked_before:]) == Counter(guide.requests)
    run_folder = tmp_path / "runs" / "minds14-wav2vec2-base"
    names = ("split_fingerprint", "hub_commits", "clips", "label2id")
    ours, theirs = (json.loads((folder / "run.json").read_text()) for folder in (run_folder, guide.folder))
    assert [ours[name] for name in names] == [theirs[name] for name in names]
    assert ours["world_size"] == 2
    # Decoded once: where the second rank found other clips, there would be another cache.
    assert len(list((tmp_path / "cache" / "audiocls" / "waveforms").iterdir())) == 1
    assert not second.stdout


def test_train_without_flags_runs_the_guide_and_writes_a_run_folder(guide: Guide) -> None:
    assert guide.finished.returncode == 0, guide.finished.stderr
    assert [path.name for path in (guide.cwd / "runs").iterdir()] == ["minds14-wav2vec2-base"]
    written = {path.name for path in guide.folder.iterdir()}
    files = {"run.json", "metrics.jsonl", "predictions.jsonl", "audit.json", "report.html"}
    assert written == files | {"checkpoints", "best", "errors"}
    run = json.loads((guide.folder / "run.json").read_text())
    assert set(run["hub_commits"]) == {"PolyAI/minds14", "facebook/wav2vec2-base"}
    assert run["config"]["dataset"] == "PolyAI/minds14"
    assert run["config"]["max_steps"] == 2
    assert run["clips"] == {"train": 33, "evaluation": 9, "test": 0}  # 42 clips
    assert {"torch", "transformers", "python"} <= set(run["versions"])
    assert [record["step"] for record in guide.records("train")] == [2]
    assert [record["step"] for record in guide.records("eval")] == [1, 2]
    (end,) = guide.records("end")
    assert (end["step"], end["reason"]) == (2, "max_steps")


def test_stderr_holds_no_traceback_and_no_warning(guide: Guide) -> None:
    assert guide.infer.returncode == 0, guide.infer.stderr
    for finished in (guide.finished, guide.infer):
        assert "Traceback" not in finished.stderr
        assert "Warning" not in finished.stderr


def test_what_was_cut_and_what_was_not_used_is_said(guide: Guide) -> None:
    notes = [line for line in unbroken(guide.finished.stdout).splitlines() if line.startswith("note: ")]
    assert any("--max-seconds 1 cuts" in note for note in notes)
    assert any("are not used" in note for note in notes)


def test_the_best_model_loads_anywhere(guide: Guide) -> None:
    best = guide.folder / "best"
    assert {path.name for path in best.iterdir()} >= MODEL_FILES
    config = json.loads((best / "config.json").read_text())
    assert "gradient_checkpointing" not in config  # set in the published config
    assert config["id2label"] == {str(id): intent for id, intent in enumerate(INTENTS)}
    assert config["label2id"] == {intent: id for id, intent in enumerate(INTENTS)}
    assert config["architectures"] == ["Wav2Vec2ForSequenceClassification"]
    card = ModelCard.load(best / "README.md").data
    assert (card.base_model, card.datasets) == ("facebook/wav2vec2-base", ["PolyAI/minds14"])
    preprocessor = json.loads((best / "preprocessor_config.json").read_text())
    assert preprocessor["sampling_rate"] == 16_000
    assert preprocessor["return_attention_mask"] is False

    from transformers import AutoModelForAudioClassification

    _, report = AutoModelForAudioClassification.from_pretrained(best, output_loading_info=True)
    assert not any(report.values())


def test_what_a_run_says_to_type_next_names_a_file(guide: Guide) -> None:
    *_, before, last = guide.finished.stdout.splitlines()
    assert before.endswith("try:")
    command = last.split()
    assert command[:3] == ["python", str(ROOT / "infer.py"), "runs/minds14-wav2vec2-base"]
    # A Hub data set's clips lie in no file of their own: what is suggested must be a file, or a word for one.
    assert (guide.cwd / command[3]).exists() or not command[3].startswith("PolyAI/")


def test_only_the_hub_is_asked_and_only_for_the_model_and_the_data_set(guide: Guide) -> None:
    assert guide.other_hosts == []
    assert guide.requests
    for request in guide.requests:
        assert request.method in ("GET", "HEAD")
        assert request.path.startswith(ASKED)
        # The converter to safetensors works through discussions, pull requests and their revisions.
        for words in ("discussions", "refs/pr", "refs%2Fpr", "convert", "commits"):
            assert words not in request.path


def test_each_file_is_downloaded_once(guide: Guide) -> None:
    downloads = [r.path for r in guide.requests if r.method == "GET" and "/resolve/" in r.path]
    assert len(downloads) == len(set(downloads))
    assert sum(path.endswith("pytorch_model.bin") for path in downloads) == 1
    assert sum(path.endswith(".parquet") for path in downloads) == 1  # of en-US alone


# What the Hub does not have


@pytest.mark.parametrize(
    ("question", "says"),
    [
        ("no data set", ("The data set PolyAI/nothing", "neither a local folder nor on the Hub")),
        ("no model", ("The model facebook/nothing", "neither a local folder nor on the Hub")),
        ("no data set revision", ("The data set", "PolyAI/minds14", "'v9'")),
        ("no model revision", ("The model", "facebook/wav2vec2-base", "'v9'")),
        ("no config", ("xx-XX", "en-US", "de-DE", "--dataset-config")),
        ("no column", ("'intent'", "intent_class", "lang_id", "--label-column")),
    ],
)
def test_what_is_not_on_the_hub_is_a_wrong_usage_in_one_line(
    answers: dict[str, Any], question: str, says: tuple[str, ...]
) -> None:
    exit_code, stderr = answers[question]
    assert exit_code == 2, stderr
    assert stderr.count("\n") == 1
    assert stderr.startswith("error: ")
    for words in says:
        assert words in stderr


def test_a_revision_is_the_one_that_is_loaded(answers: dict[str, Any]) -> None:
    assert answers["clips"] == {"None": 42, "main": 42, "v2": 28}
    weights = answers["weights"]
    assert weights["None"] == weights["main"] != weights["v2"]


# Without the Hub


def test_with_a_warm_cache_the_hub_is_not_needed(
    guide: Guide, without_hub: dict[str, tuple[Finished, float]]
) -> None:
    finished, _ = without_hub["warm"]
    assert finished.returncode == 0, finished.stderr
    assert "train 33 clips, evaluation (held out of train) 9 clips" in unbroken(finished.stdout)


@pytest.mark.parametrize("case", ["empty", "empty, told to be offline", "empty, tiny model"])
def test_with_an_empty_cache_it_fails_soon_naming_the_endpoint_and_demo(
    without_hub: dict[str, tuple[Finished, float]], case: str
) -> None:
    finished, seconds = without_hub[case]
    what = "PolyAI/minds14" if "tiny" in case else "facebook/wav2vec2-base"
    assert_one_line_error(finished, 4, what, "http://127.0.0.1:", "--demo")
    # Two processes that import torch on two cores; huggingface_hub's own retries would add 24 s a file.
    assert seconds < 20


def test_without_the_hub_a_revision_is_not_guessed(without_hub: dict[str, tuple[Finished, float]]) -> None:
    finished, seconds = without_hub["warm, a revision asked for"]
    assert_one_line_error(finished, 4, "--dataset-revision v2")
    assert seconds < 20
