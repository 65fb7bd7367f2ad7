"""A classifier as one file that runs without this package: ONNX, or torch.export's .pt2.

The file takes what the model takes (`input_values`, float32 [batch, samples], and where the model uses it
`attention_mask`, int64 [batch, samples], 1 = real) and gives `logits`, float32 [batch, labels]. What must be
done before and after lies in it as metadata, see `metadata_of`.
"""

import contextlib
import importlib.util
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from audiocls.data.collators import Example
from audiocls.errors import UserError, reason
from audiocls.inference.classifier import Classifier
from audiocls.lean_torch import complete_torch
from audiocls.storage import complete_path
from audiocls.version import __version__

Inputs = dict[str, Tensor]
Run = Callable[[Inputs], Tensor]  # the exported file: inputs -> logits

TOLERANCE = 1e-4  # where the logits' standard deviation is 1
ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
MAX_ONNX_BYTES = 2**31 - 2**24  # a protocol buffer's limit, with room for the graph
# Seconds of the clips in each batch that the file is checked with; the model is traced with the first.
CHECKED_BATCHES = ((1.0, 0.7), (1.3,), (0.5, 0.5, 0.5), (0.45, 2.1, 0.8, 1.05))


def check_packages(format: str) -> None:
    """Raises UserError where writing this format needs packages that are not installed."""
    lacking = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if format == "onnx" and lacking:
        raise UserError(f"--export onnx needs more packages: pip install {' '.join(lacking)}")


def export(classifier: Classifier, format: str, output: str) -> str:
    """Write `classifier` to the file `output`, as "onnx" or "torch"; returns a line about it.

    Raises UserError where the model cannot be exported, or the file would give other logits.
    """
    complete_torch()
    batches = [inputs_of(classifier, seconds) for seconds in CHECKED_BATCHES]
    model = Logits(classifier.model, next(iter(batches[0]))).eval()
    write, open_file = (write_onnx, open_onnx) if format == "onnx" else (write_torch, open_torch)
    with complete_path(Path(os.path.expanduser(output))) as unfinished, torch.no_grad():
        with quiet_exporter(classifier.backbone.config.model_type, format):
            write(model, batches[0], metadata_of(classifier, batches[0]), unfinished)
            difference = largest_difference(model, open_file(unfinished), batches)
        if not difference <= TOLERANCE:
            raise UserError(
                f"The {format} file would give other logits, by up to {difference:.1g} of their spread: not "
                "written."
            )
        megabytes = unfinished.stat().st_size / 1e6
    return f"{output}: {megabytes:.1f} MB, its logits within {difference:.1g} of their spread"


class Logits(nn.Module):
    """The model, its inputs by position: what `main_input` names, and a mask of what is real in it."""

    def __init__(self, model: nn.Module, main_input: str) -> None:
        super().__init__()
        self.model = model
        self.main_input = main_input

    def forward(self, main: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        inputs = {self.main_input: main}
        if attention_mask is not None and self.main_input == "input_values":
            inputs["lengths"] = attention_mask.sum(-1)
        elif attention_mask is not None:
            inputs["attention_mask"] = attention_mask
        return self.model(**inputs)


def metadata_of(classifier: Classifier, inputs: Inputs) -> dict[str, Any]:
    """What one must know to use the file: what goes in, and what the logits are."""
    backbone = classifier.backbone
    extractor = backbone.feature_extractor
    about = {
        "labels": classifier.labels,  # in the order of the logits
        "problem_type": backbone.problem_type or "single_label_classification",
        "sampling_rate": backbone.sampling_rate,  # Hz
        "min_samples": backbone.min_samples,
        "max_samples": backbone.max_samples,  # what is beyond is not used; null: all is used
        "attention_mask": "attention_mask" in inputs,
        # If not, only clips of one length may share a batch.
        "padding_invariant": classifier.padding_invariant,
        "model_type": backbone.config.model_type,
        "audiocls_version": __version__,
    }
    if backbone.takes_waveforms:
        # normalised: (waveform - mean) / sqrt(variance + 1e-7), each clip by itself, before it is padded
        return about | {"do_normalize": extractor.do_normalize, "padding_value": extractor.padding_value}
    return about | {"feature_extractor": json.loads(extractor.to_json_string())}


def inputs_of(classifier: Classifier, clip_seconds: tuple[float, ...]) -> Inputs:
    """What the model takes for made clips of these lengths; always with a mask, if it ever takes one."""
    rate = classifier.backbone.sampling_rate
    generator = np.random.default_rng(len(clip_seconds))
    clips = []
    for number, seconds in enumerate(clip_seconds):
        time = np.arange(max(round(seconds * rate), classifier.backbone.min_samples)) / rate
        tone = np.sin(2 * np.pi * 200 * 2**number * time)
        noise = generator.standard_normal(len(time))
        clips.append((0.3 * tone + 0.05 * (number + 1) * noise).astype(np.float32))
    inputs = classifier.collate([Example(clip) for clip in clips]).inputs
    if getattr(classifier.collate, "with_lengths", False):
        samples = inputs["input_values"].shape[1]
        lengths = inputs.pop("lengths", torch.full((len(clips),), samples))
        is_real = torch.arange(samples) < lengths[:, None]
        inputs["attention_mask"] = is_real.long()  # as feature extractors make it
    return inputs


def shapes_of(inputs: Inputs) -> dict[str, dict[int, str]]:
    """The names of the dimensions that vary: batch and, unless all clips are brought to one length, time."""
    is_waveform = inputs[next(iter(inputs))].ndim == 2
    time = {1: "samples" if is_waveform else "frames"} if is_waveform or "attention_mask" in inputs else {}
    return {name: {0: "batch"} | time for name in inputs}


def write_torch(model: nn.Module, inputs: Inputs, metadata: dict[str, Any], path: Path) -> None:
    shapes = [dict.fromkeys(varying, torch.export.Dim.DYNAMIC) for varying in shapes_of(inputs).values()]
    program = torch.export.export(model, tuple(inputs.values()), dynamic_shapes=shapes, strict=False)
    with path.open("wb") as file:
        torch.export.save(program, file, extra_files={"metadata.json": json.dumps(metadata)})


def open_torch(path: Path) -> Run:
    with path.open("rb") as file:
        module = torch.export.load(file).module()
    return lambda inputs: module(*inputs.values())


def write_onnx(model: nn.Module, inputs: Inputs, metadata: dict[str, Any], path: Path) -> None:
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    if num_bytes > MAX_ONNX_BYTES:
        raise UserError(f"The model has {num_bytes / 1e9:.1f} GB, an ONNX file holds 2: use --export torch.")
    program = torch.onnx.export(
        model,
        tuple(inputs.values()),
        dynamic_shapes=tuple(shapes_of(inputs).values()),
        input_names=list(inputs),
        output_names=["logits"],
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    for key, value in metadata.items():
        program.model.metadata_props[key] = value if isinstance(value, str) else json.dumps(value)
    path.write_bytes(program.model_proto.SerializeToString())


def open_onnx(path: Path) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda inputs: torch.from_numpy(
        session.run(["logits"], {name: tensor.numpy() for name, tensor in inputs.items()})[0]
    )


def largest_difference(model: nn.Module, run: Run, batches: list[Inputs]) -> float:
    """Between the two's logits, in units of the original's standard deviation; NaN where one is."""
    expected = [model(*inputs.values()) for inputs in batches]
    differences = [run(inputs) - logits for inputs, logits in zip(batches, expected, strict=True)]
    return (torch.cat(differences).abs().max() / torch.cat(expected).std()).item()


@contextlib.contextmanager
def quiet_exporter(model_type: str, format: str) -> Iterator[None]:
    """Without the exporters' warnings about themselves, and their many errors as one line."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    except (UserError, OSError):
        raise
    except Exception as error:
        other = "torch" if format == "onnx" else "onnx"
        raise UserError(
            f"A {model_type} has no {format} export that takes any batch and length, try --export {other}: "
            f"{reason(error)}"
        ) from error
    finally:
        logging.disable(level)
