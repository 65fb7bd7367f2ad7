"""The head is trained first: a function of the model, the clips and the seed that leaves the rest alone."""

import dataclasses
from pathlib import Path

import pytest
import torch
from architectures import save_backbone
from conftest import Lab
from data_helpers import run_script, unbroken

from audiocls.config import TrainConfig
from audiocls.data.augment import Augmentation
from audiocls.data.prepare import RunData
from audiocls.model.backbone import LoadedModel
from audiocls.model.freezing import freeze, with_layer_sum
from audiocls.model.loading import LEARNED_HERE, load_for_training, open_backbone
from audiocls.training.evaluation import evaluate
from audiocls.training.head_first import train_head_first
from audiocls.training.loop import evaluation_batches

CPU = torch.device("cpu")


def loaded_for(folder: Path, data: RunData) -> LoadedModel:
    return load_for_training(with_layer_sum(open_backbone(str(folder))), data.labels, seed=0)


@pytest.mark.parametrize("kind", ["wav2vec2", "whisper"])
def test_only_the_head_changes_and_what_is_trained_afterwards_is_as_before(
    kind: str, lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_backbone(kind, tmp_path / "model")
    data = lab.data(24, samples=1_600)
    augment = Augmentation(("speed", "mask"), 0, data.train.decoded.sampling_rate, 400)
    data = dataclasses.replace(data, train=dataclasses.replace(data.train, augment=augment))
    loaded = loaded_for(tmp_path / "model", data)
    what = "feature-encoder" if kind == "wav2vec2" else "nothing"
    freeze(loaded, what)
    before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    was_trained = [parameter.requires_grad for parameter in loaded.model.parameters()]
    config = TrainConfig(head_first=True, balance_classes="yes")
    train_head_first(config, loaded, data, lab.folder / "cache", CPU)
    assert loaded.takes == "audio"
    assert "head first: 1,000 steps" in capsys.readouterr().out
    changed = {
        name for name, tensor in loaded.model.state_dict().items() if not torch.equal(tensor, before[name])
    }
    assert changed == {name for name in before if name.startswith(LEARNED_HERE)}
    assert [parameter.requires_grad for parameter in loaded.model.parameters()] == was_trained
    assert all(parameter.grad is None for parameter in loaded.model.parameters())
    again = loaded_for(tmp_path / "model", data)
    freeze(again, what)
    nowhere = lab.folder / "a file"  # where the cache cannot be written
    nowhere.touch()
    train_head_first(config, again, data, nowhere, CPU)
    for name, tensor in again.model.state_dict().items():
        assert torch.equal(tensor, loaded.model.state_dict()[name]), name


def test_the_head_fits_what_the_whole_model_computes(lab: Lab, tmp_path: Path) -> None:
    save_backbone("wav2vec2", tmp_path / "model")
    data = lab.data(24, samples=1_600)
    data = dataclasses.replace(data, evaluation=data.train)
    loaded = loaded_for(tmp_path / "model", data)
    config = TrainConfig(head_first=True)

    def loss() -> float:
        result = evaluate(
            loaded.model, evaluation_batches(config, data, data.train, loaded, CPU), CPU, "fp32"
        )
        assert result is not None
        return result.scores["loss"]

    before = loss()
    train_head_first(config, loaded, data, lab.folder / "cache", CPU)
    assert loss() < 0.5 * before


@pytest.mark.slow
def test_a_run_with_the_head_first_goes_on_bit_by_bit(lab: Lab, tmp_path: Path) -> None:
    save_backbone("whisper", tmp_path / "model")
    clips = Path(lab.data(24, samples=1_600).train.paths[0]).parents[2]
    flags = ("--dataset", str(clips), "--model", "model", "--output-dir", "run", "--device", "cpu")
    few = ("--max-steps", "4", "--checkpoint-every", "2", "--eval-every", "4")
    done = run_script("train.py", *flags, *few, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "head first: 1,000 steps" in unbroken(done.stdout)
    assert "the model's window is cut" in unbroken(done.stdout)
    last = tmp_path / "run/checkpoints/step-00000004/model.safetensors"
    weights = last.read_bytes()
    for file in last.parent.iterdir():
        file.unlink()
    last.parent.rmdir()
    on = run_script("train.py", *flags, *few, "--resume", cwd=tmp_path, timeout=120)
    assert on.returncode == 0, on.stderr
    assert "going on after step 2" in unbroken(on.stdout)
    assert last.read_bytes() == weights
