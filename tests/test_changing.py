"""docs/changing.md: each of its diffs applies to a copy of the repository, which then does what it says."""

import json
import re
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import write_clips
from data_helpers import ROOT, run_script
from sklearn.metrics import cohen_kappa_score
from torch.nn import functional as F

pytestmark = pytest.mark.slow

DIFFS = re.findall(r"^## (.*?)$.*?^```diff\n(.*?)^```", (ROOT / "docs/changing.md").read_text(), re.M | re.S)


def changed(folder: Path, title: str) -> Path:
    """A copy of the package and the scripts with the diff below that title applied."""
    copy = folder / "copy"
    shutil.copytree(ROOT / "audiocls", copy / "audiocls", ignore=shutil.ignore_patterns("__pycache__"))
    for script in ("train.py", "infer.py"):
        shutil.copy(ROOT / script, copy)
    (copy / "change.diff").write_text(dict(DIFFS)[title])
    subprocess.run(["git", "apply", "--verbose", "change.diff"], cwd=copy, check=True)
    return copy


def train(copy: Path, *flags: str) -> list[dict[str, Any]]:
    """A few steps in `copy`/run; returns its records."""
    script = copy / "train.py"
    run = ("--output-dir", "run", "--log-every", "1", "--device", "cpu")
    done = run_script(str(script), "--demo", *run, *flags, cwd=copy, timeout=120)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in (copy / "run" / "metrics.jsonl").read_text().splitlines()]


def test_every_change_is_tried_here_and_is_small() -> None:
    files = {title: re.findall(r"^\+\+\+ b/(\S+)", diff, re.M) for title, diff in DIFFS}
    assert files == {
        "Another loss": ["audiocls/training/loss.py"],
        "A waveform augmentation": ["audiocls/config.py", "audiocls/data/augment.py"],
        "A data source": ["audiocls/data/sources.py"],
        "A learning rate of its own for the head": ["audiocls/training/optim.py"],
        "A metric": ["audiocls/metrics.py"],
    }


def test_another_loss(tmp_path: Path) -> None:
    copy = changed(tmp_path, "Another loss")
    code = (
        "import torch; from audiocls.training.loss import loss_sum; torch.manual_seed(0)\n"
        "print(loss_sum(torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1]), 0.0).item())"
    )
    torch.manual_seed(0)
    logits, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    own = logits.softmax(-1)[range(5), labels]
    expected = (-((1 - own) ** 2) * own.log()).sum().item()
    done = run_script("-c", code, cwd=copy)
    assert float(done.stdout) == pytest.approx(expected, rel=1e-6)
    losses = [record["loss"] for record in train(copy, "--max-steps", "2") if record["kind"] == "train"]
    chance = -F.log_softmax(torch.zeros(10), 0)[0].item()  # of ten classes
    assert losses[0] == pytest.approx(0.9**2 * chance, rel=0.2)


def test_a_waveform_augmentation_is_the_same_after_a_resume_by_other_processes(tmp_path: Path) -> None:
    copy = changed(tmp_path, "A waveform augmentation")
    steps = ("--max-steps", "6", "--checkpoint-every", "3", "--eval-every", "6")
    echo = ("--augment", "reverberation,speed")
    train(copy, *steps, *echo)
    last = copy / "run" / "checkpoints" / "step-00000006" / "model.safetensors"
    weights = last.read_bytes()
    shutil.rmtree(last.parent)
    train(copy, *steps, *echo, "--resume", "--num-workers", "2")
    assert last.read_bytes() == weights
    train(copy, *steps, "--augment", "speed", "--overwrite")
    assert last.read_bytes() != weights


def test_a_data_source(tmp_path: Path) -> None:
    copy = changed(tmp_path, "A data source")
    clips = write_clips(tmp_path / "clips", [800] * 12)
    with zipfile.ZipFile(copy / "clips.zip", "w") as archive:
        for path in clips.rglob("*.wav"):
            archive.write(path, path.relative_to(clips))
    records = train(copy, "--dataset", "clips.zip", "--max-steps", "2")
    assert records[-1]["kind"] == "end"
    assert json.loads((copy / "run" / "run.json").read_text())["clips"]["train"] == 9


def test_a_learning_rate_of_its_own_for_the_head(tmp_path: Path) -> None:
    records = train(changed(tmp_path, "A learning rate of its own for the head"), "--max-steps", "3")
    rates = [(r["learning_rate"], r["learning_rate_head"]) for r in records if r["kind"] == "train"]
    assert len({rate for rate, _ in rates}) == 3
    assert [head for _, head in rates] == [pytest.approx(5 * rate) for rate, _ in rates]


def test_a_metric(tmp_path: Path) -> None:
    copy = changed(tmp_path, "A metric")
    evaluation = next(
        record
        for record in train(copy, "--max-steps", "2", "--best-metric", "kappa")
        if record["kind"] == "eval"
    )
    lines = [json.loads(line) for line in (copy / "run" / "predictions.jsonl").read_text().splitlines()]
    names = sorted(json.loads((copy / "run" / "run.json").read_text())["label2id"])
    judged = [(line["label"], line["probabilities"]) for line in lines if line["split"] == "evaluation"]
    predicted = [names[max(range(10), key=p.__getitem__)] for _, p in judged]
    assert evaluation["kappa"] == pytest.approx(cohen_kappa_score([label for label, _ in judged], predicted))
    for page in ("report.html", "best/README.md"):
        assert "kappa" in (copy / "run" / page).read_text()


def test_the_example_from_python_trains_and_classifies(tmp_path: Path) -> None:
    done = run_script("examples/from_python.py", cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^\S+\.wav: \S+ \([01]\.\d\d\)$", done.stdout, re.M)) == 3
