"""A model's files, in a folder or on the Hub: read as data, for anybody may have made them; and written.

Of a model's files only these are opened: config.json and preprocessor_config.json, of which the fields of a
known class are kept (others name code to fetch and run: `auto_map`, `attn_implementation`,
`quantization_config`), and the weights: safetensors or, where that is all there is, a `pytorch_model.bin`,
unpickled into tensors only. transformers is given what was read and never sees the files.

What does not fit is a UserError, what cannot be read an InputOutputFailed, each in one line.
"""

import json
import math
import os
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from audiocls.data.limits import MAX_RATE, MIN_RATE
from audiocls.errors import InputOutputFailed, UserError, reason
from audiocls.hub import hub_file
from audiocls.model.backbone import LoadedModel
from audiocls.model.settings import WaveformExtractor
from audiocls.storage import CHECKSUMS, damage, finish_swap, open_regular, write_json

MOST_JSON_BYTES = 5 * 2**20
MOST_LABELS = 100_000
DEFAULT_LABELS = {"0": "LABEL_0", "1": "LABEL_1"}  # transformers' own, where a config has none
MOST_LIST_ITEMS = 1_000
MOST_SHARDS = 1_000
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # each also as shards, with an index of them

# What a number may be, by its field's name: the first pattern that fits counts. Sizes of weights are compared
# with the tensors by `load_stock`. Here stands what no tensor shows, or what costs time or memory before
# that.
LIMITS: tuple[tuple[str, float, float], ...] = (
    ("sampling_rate", MIN_RATE, MAX_RATE),  # clips are resampled to it
    (".*dropout.*|.*layerdrop|.*_prob", 0, 1),  # others fail in training only
    (".*layers", 0, 256),  # built one by one before they are compared
    ("num_conv_pos_embeddings|mask_.*_length|.*stride|hop_length|feature_size|num_mel_bins", 1, 1_024),
    (".*positions|n_fft", 1, 20_000),  # sines and filters are computed from these
    ("mean|std|padding_value|.*_id|.*tokens", -1e7, 1e7),  # all that may be below 0
    (".*", 0, 1e7),  # so that nothing overflows on the way
)


def model_folder(name: str) -> str:
    """The folder that holds the model: `best/` of a run folder; a name that is no folder's as it is.

    Of a folder of folds it is that of the final model. Its files are compared with its checksums, where it
    has them. Raises InputOutputFailed where they differ, UserError where there is no model.
    """
    name = os.path.expanduser(name)
    folder = Path(name)
    if not os.path.isdir(folder):
        return name
    finish_swap(folder / "best")
    if (folder / "best").is_dir():
        folder = folder / "best"
    elif not (folder / "config.json").exists():
        if (folder / "final" / "best").is_dir():  # what folds.py trained on all clips
            return model_folder(str(folder / "final"))
        if (folder / "run.json").exists():
            raise UserError(
                f"{name} holds a run without best/: its first evaluation makes it. Let it go on (--resume)."
            )
        raise UserError(
            f"{name} holds no model: give a run folder with best/ in it, or one with a config.json."
        )
    checksums = folder / CHECKSUMS
    if checksums.exists() and (why := damage(folder)):
        raise InputOutputFailed(f"{folder}: {why}. If that was you, delete {checksums} to use it as it is.")
    return str(folder)


def model_file(name: str, revision: str | None, filename: str) -> Path | None:
    """A file of the model, from its folder or the Hub; None where it has none of that name."""
    folder = Path(name)
    if not os.path.isdir(folder):
        return hub_file(name, filename, revision)
    return folder / filename if os.path.lexists(folder / filename) else None


def missing(name: str, what: str) -> Exception:
    """What to raise where a model lacks a file: on the Hub that may mean that the Hub is out of reach."""
    lacks = f"{name} holds no {what}"
    return UserError(f"{lacks}.") if os.path.isdir(name) else FileNotFoundError(lacks)


def read_settings(name: str, revision: str | None, filename: str) -> tuple[Path, dict[str, Any]]:
    """Where config.json or preprocessor_config.json is, and all that it holds."""
    if (path := model_file(name, revision, filename)) is None:
        raise missing(name, filename)
    return path, read_json(path)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a regular file of bounded size, all its numbers finite."""
    try:
        with open_regular(path) as file:
            content = file.read(MOST_JSON_BYTES + 1)
        if len(content) > MOST_JSON_BYTES:
            raise ValueError(f"it is larger than {MOST_JSON_BYTES // 2**20} MiB")
        value = json.loads(content, parse_constant=finite, parse_float=finite)
    except OSError as error:
        raise InputOutputFailed(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}.") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object.")
    return value


def finite(text: str) -> float:
    """The number; json takes NaN, Infinity and 1e999 for numbers too."""
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text} is not a finite number")
    return value


def known_fields(values: dict[str, Any], known: Iterable[str], path: Path) -> dict[str, Any]:
    """Those of `values` that are `known`: single values, or short lists of them, within LIMITS."""
    kept = {name: values[name] for name in known if name in values}
    for name, value in kept.items():
        items = value if isinstance(value, list) else [value]
        if len(items) > MOST_LIST_ITEMS or any(isinstance(item, list | dict) for item in items):
            raise UserError(f"{path}: {name} is not a value or a short list of them.")
        low, high = next((low, high) for pattern, low, high in LIMITS if re.fullmatch(pattern, name))
        for item in items:
            if isinstance(item, int | float) and not low <= item <= high:
                raise UserError(f"{path}: {name} is {item}, outside {low:g} to {high:g}.")
    return kept


def labels_in(config: dict[str, Any], path: Path) -> list[str]:
    """The labels of a fine-tuned model in the order of its outputs: `id2label`, one for each of 0, 1, 2..."""
    id2label = config.get("id2label", DEFAULT_LABELS)
    if not isinstance(id2label, dict) or not 1 <= len(id2label) <= MOST_LABELS:
        raise UserError(f"{path}: id2label is not a map of 1 to {MOST_LABELS} labels.")
    labels = [label for id in range(len(id2label)) if isinstance(label := id2label.get(str(id)), str)]
    if len(labels) < len(id2label):
        raise UserError(f"{path}: id2label must give one text for each of 0 to {len(id2label) - 1}.")
    if len(set(labels)) < len(labels):
        (twice, _), *_ = Counter(labels).most_common()
        raise UserError(f"{path}: id2label has the label {twice!r} twice.")
    return labels


def named_labels(config: dict[str, Any], path: Path) -> list[str]:
    """`labels_in`; none where they are wrong, or missing: transformers then names them LABEL_0, LABEL_1..."""
    try:
        labels = labels_in(config, path)
    except UserError:
        return []
    return [] if labels == [f"LABEL_{id}" for id in range(len(labels))] else labels


def weight_files(name: str, find: Callable[[str], Path | None]) -> list[Path]:
    """The files that hold the weights; of shards, all that the index names. None where there are none.

    `find` gives a file of the model by its name, None where it has none.
    """
    for weights in WEIGHTS:
        if file := find(weights):
            return [file]
        if index := find(f"{weights}.index.json"):
            weight_map = read_json(index).get("weight_map")
            shards = set(map(str, weight_map.values())) if isinstance(weight_map, dict) else set()
            suffix = Path(weights).suffix
            if not 1 <= len(shards) <= MOST_SHARDS:
                raise UserError(f"{index} names {len(shards)} files, not 1 to {MOST_SHARDS}.")
            for shard in shards:
                if Path(shard).name != shard or not shard.endswith(suffix):
                    raise UserError(f"{index} names {shard!r}, which is no {suffix} file beside it.")
            files = {shard: find(shard) for shard in sorted(shards)}
            if absent := [shard for shard, file in files.items() if file is None]:
                raise UserError(f"{name} lacks {absent[0]}, which its index names.")
            return [file for file in files.values() if file is not None]
    return []


def read_weights(name: str, revision: str | None) -> dict[str, Tensor]:
    """The tensors by name, mapped rather than read where the format allows it; their values are finite."""
    if not (files := weight_files(name, partial(model_file, name, revision))):
        raise missing(name, " or ".join(WEIGHTS))
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            with open_regular(file):
                pass
            loaded = load_file(file) if file.suffix == ".safetensors" else unpickle(file)
        except OSError as error:
            raise InputOutputFailed(f"{file} cannot be read: {error.strerror or error}.") from None
        except Exception as error:  # safetensors and torch raise many kinds over a broken file
            why = reason(error)
            raise UserError(f"{file} does not hold tensors alone, or is damaged: {why}") from None
        check_tensors(loaded, str(file))
        tensors |= loaded
    return tensors


def unpickle(file: Path) -> Any:
    """What torch saved, as long as it is tensors and plain values."""
    with warnings.catch_warnings(action="ignore"):  # torch's, about pickles that are not its own: they fail
        # Mapped: no part of the archive is unpacked. torch's format of before 2020 is no archive.
        return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))


def check_tensors(tensors: Any, what: str) -> None:
    """Raises UserError for anything but plain tensors by name, no larger than what they hold, all finite."""
    if not isinstance(tensors, dict):
        raise UserError(f"{what} holds no tensors by name.")
    for name, tensor in tensors.items():
        plain = isinstance(name, str) and isinstance(tensor, Tensor) and tensor.layout is torch.strided
        # One that is expanded from few values would be as large as it says once it is copied.
        if not plain or tensor.is_quantized or tensor.nbytes > tensor.untyped_storage().nbytes():
            raise UserError(f"{what}: {name} is no plain tensor.")
        if tensor.is_floating_point() and tensor.numel():
            least, most = (tensor.float() if tensor.itemsize < 2 else tensor).aminmax()
            if not (torch.isfinite(least) and torch.isfinite(most)):
                raise UserError(f"{what}: {name} holds values that are not finite.")


def save_model(loaded: LoadedModel, folder: Path) -> None:
    """config.json, model.safetensors and preprocessor_config.json, as transformers' `pipeline` reads them."""
    backbone, extractor = loaded.backbone, loaded.backbone.feature_extractor
    folder.mkdir(parents=True, exist_ok=True)
    if backbone.is_stock:
        # Under the names that its own state has: AST's published ones are others, which no checkpoint takes.
        loaded.model.model.save_pretrained(folder, save_original_format=False)
    else:
        about = {
            "architectures": [backbone.config.architecture],
            "dtype": "float32",
            "id2label": dict(enumerate(backbone.labels)),
            "label2id": {label: id for id, label in enumerate(backbone.labels)},
            "problem_type": backbone.problem_type,
        }
        write_json(folder / "config.json", backbone.config.to_json() | about)
        tensors = {name: tensor.contiguous() for name, tensor in loaded.model.state_dict().items()}
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    if isinstance(extractor, WaveformExtractor):
        write_json(folder / "preprocessor_config.json", extractor.to_json())
    else:
        extractor.save_pretrained(folder)
