"""Exported files: the model's logits for any batch and length, and all that is needed to use them."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from architectures import fine_tuned
from test_architectures import LABELS, waveforms

from audiocls.config import EXPORT_SUFFIXES
from audiocls.data.collators import Example
from audiocls.errors import UserError
from audiocls.inference import export as export_module
from audiocls.inference.classifier import Classifier
from audiocls.inference.export import check_packages, export
from audiocls.model.settings import ARCHITECTURES


def classifier_of(name: str) -> Classifier:
    # Of one layer, as tracing takes its time, and of the taps of published models.
    changes = {"num_hidden_layers": 1} | ({"num_conv_pos_embeddings": 128} if name in ARCHITECTURES else {})
    return Classifier(fine_tuned(name, LABELS, **changes), torch.device("cpu"))


def run_torch(path: Path, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.export.load(path).module()(*inputs.values())


def run_onnx(path: Path, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(path)
    names = [one.name for one in session.get_inputs()]
    assert names == list(inputs)
    (logits,) = session.run(None, {name: inputs[name].numpy() for name in names})
    return torch.from_numpy(logits)


@pytest.mark.filterwarnings("ignore")  # the exporters', about themselves
@pytest.mark.parametrize(
    # Those with a code path of their own: masked group norm, no mask, a spectrogram of one length.
    ("name", "format", "run"),
    [
        ("wav2vec2", "onnx", run_onnx),
        ("wavlm", "onnx", run_onnx),
        ("wavlm", "torch", run_torch),
        ("whisper", "onnx", run_onnx),
        ("data2vec-audio", "torch", run_torch),
        ("whisper", "torch", run_torch),
    ],
)
def test_the_file_gives_the_model_s_logits_for_any_batch_and_length(
    name: str, format: str, run: Callable, tmp_path: Path
) -> None:
    for package in export_module.ONNX_PACKAGES if format == "onnx" else ():
        pytest.importorskip(package)
    classifier = classifier_of(name)
    path = tmp_path / f"model{EXPORT_SUFFIXES[format]}"
    assert "within" in export(classifier, format, str(path))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    for lengths in ((12_345,), (8_000, 30_000, 16_000)):
        clips = waveforms(*(lengths if classifier.padding_invariant else lengths[:1] * len(lengths)))
        inputs = classifier.collate([Example(clip) for clip in clips]).inputs
        with torch.inference_mode():
            expected = classifier.model(**inputs)
        if getattr(classifier.collate, "with_lengths", False):
            samples = torch.arange(max(map(len, clips)))
            inputs["attention_mask"] = (samples < torch.tensor([[len(clip)] for clip in clips])).long()
            inputs.pop("lengths", None)
        difference = (run(path, inputs) - expected).abs().max() / expected.std()
        assert difference < 1e-4


@pytest.mark.filterwarnings("ignore")
def test_a_reader_with_only_numpy_and_the_file_scores_as_the_classifier_does(tmp_path: Path) -> None:
    """Labels, rate and preprocessing are in the file; lengths and batch are free."""
    classifier = classifier_of("wav2vec2")
    export(classifier, "torch", str(tmp_path / "model.pt2"))
    files = {"metadata.json": ""}
    model = torch.export.load(tmp_path / "model.pt2", extra_files=files).module()
    about = json.loads(files["metadata.json"])
    assert (about["labels"], about["sampling_rate"], about["attention_mask"]) == (LABELS, 16_000, True)
    assert (about["do_normalize"], about["padding_value"], about["padding_invariant"]) == (True, 0.0, True)

    clips = waveforms(20_000, 9_000)
    values, mask = np.full((2, 20_000), about["padding_value"], np.float32), np.zeros((2, 20_000), np.int64)
    for row, clip in enumerate(clips):
        values[row, : len(clip)] = (clip - clip.mean()) / np.sqrt(clip.var() + 1e-7)
        mask[row, : len(clip)] = 1
    logits = model(torch.from_numpy(values), torch.from_numpy(mask))
    predictions = classifier(clips, sampling_rate=about["sampling_rate"], top_k=3)
    for scores, prediction in zip(logits.softmax(-1).tolist(), predictions, strict=True):
        found = dict(zip(about["labels"], scores, strict=True))
        assert found == pytest.approx(dict(prediction.scores), abs=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_a_file_that_would_give_other_logits_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_torch = export_module.open_torch
    off = lambda path: lambda inputs: open_torch(path)(inputs) + 1e-2  # noqa: E731
    monkeypatch.setattr(export_module, "open_torch", off)
    with pytest.raises(UserError, match="other logits"):
        export(classifier_of("whisper"), "torch", str(tmp_path / "model.pt2"))
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_is_one_line_that_names_the_other_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise AssertionError("guard failed:\nbatch != 1")

    monkeypatch.setattr(export_module, "write_torch", fail)
    says = r"A wavlm has no torch export.*--export onnx.*guard failed"
    with pytest.raises(UserError, match=says) as raised:
        export(classifier_of("wavlm"), "torch", str(tmp_path / "model.pt2"))
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_onnx_without_its_packages_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install onnx onnxruntime onnxscript"):
        check_packages("onnx")
    check_packages("torch")
