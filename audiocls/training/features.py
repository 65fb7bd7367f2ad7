"""Frozen work done once: what the frozen part of a model makes of each clip, computed before training.

Of `--freeze feature-encoder` that is the output of the convolutions, a third of a forward pass. Of `--freeze
encoder` it is all that the head takes: the means over the clip's frames of the encoder's hidden states, from
which a training step takes a millisecond. Each clip goes through that part once, alone, without dropout and
masks, and what comes out is kept in the cache folder, named after the clips and the frozen weights: another
run on the same data finds it there.
"""

import dataclasses
import hashlib
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from audiocls.data.cache import CacheWriter, FlatFile, InMemory, Waveforms, cache_key
from audiocls.data.collators import Example
from audiocls.data.prepare import RunData
from audiocls.data.stores import Store
from audiocls.errors import InputOutputFailed
from audiocls.lines import duration
from audiocls.model.backbone import LoadedModel
from audiocls.streams import progress, say


@dataclasses.dataclass
class Features:
    """What was made of clips: `features[i]` is float16 [frames, channels] or float32 [states, hidden]."""

    waveforms: Waveforms
    cache: FlatFile | InMemory

    def __getitem__(self, index: int) -> np.ndarray:
        return self.cache[index]

    def place(self, index: int) -> Any:
        return self.cache.place(index)

    @property
    def store(self) -> Store:
        return self.cache.store


def cache_features(
    loaded: LoadedModel, data: RunData, takes: str, cache_dir: Path, device: torch.device
) -> tuple[LoadedModel, RunData]:
    """The model, set to take "features" or "pooled" states, and the data with them in the place of waveforms.

    What makes them must be frozen. Where the cache folder cannot hold them, pooled states, some kilobytes a
    clip, are kept in memory; for features it raises InputOutputFailed.
    """
    waveforms: Waveforms = data.train.decoded
    rows = np.unique(np.concatenate([part.rows for part in data.parts.values()]))
    folder = cache_dir / "features" / features_key(loaded, waveforms, rows, takes)
    lengths = np.zeros(len(waveforms.clips), np.int64)
    lengths[rows] = [length_of(loaded, takes, int(n)) for n in waveforms.num_samples[rows]]
    config = loaded.backbone.config
    dtype, width = (
        (np.float32, config.hidden_size) if takes == "pooled" else (np.float16, config.conv_dim[-1])
    )

    file = FlatFile(folder / CacheWriter.VALUES, lengths, dtype, width)
    kept: FlatFile | InMemory = file
    if not file.is_whole():
        pooled: dict[int, np.ndarray] = {}  # some kB a clip: kept in memory where the folder holds nothing
        began = time.perf_counter()
        say(f"encoding {len(rows):,} clips, once, through what is frozen of the model")
        collate = loaded.collator()
        loaded.model.to(device).eval()
        with CacheWriter(folder) as writer, torch.inference_mode():
            for row in progress(rows, "encoding", len(rows)):
                batch = collate([Example(waveforms[row])]).to(device)
                values = encoded(loaded, takes, batch.inputs).contiguous().cpu().numpy().astype(dtype)
                writer.write(values)
                if takes == "pooled":
                    pooled[int(row)] = values
            writer.publish({"lengths": lengths.tolist()})
        say(f"encoded in {duration(time.perf_counter() - began)}")
        if not file.is_whole():
            if takes == "features":
                raise InputOutputFailed(
                    f"{folder} cannot hold {file.num_bytes / 1e9:.1f} GB of features: leave out "
                    "--cache-features, or name another --cache-dir."
                )
            kept = InMemory(pooled)
    features = Features(waveforms, kept)
    parts: dict[str, Any] = {
        part: dataclasses.replace(clips, waveforms=features, augment=None)
        for part, clips in data.parts.items()
    }
    return dataclasses.replace(loaded, takes=takes), dataclasses.replace(data, **parts)


def length_of(loaded: LoadedModel, takes: str, num_samples: int) -> int:
    """How many frames come of a clip of so many samples, or how many states."""
    if takes == "features":
        return loaded.backbone.frames_of_samples(num_samples)
    config = loaded.backbone.config
    return config.num_hidden_layers + 1 if hasattr(config, "use_weighted_layer_sum") else 1


def encoded(loaded: LoadedModel, takes: str, inputs: dict[str, Tensor]) -> Tensor:
    """What comes of one clip: float [frames, channels] or [states, hidden]."""
    if takes == "pooled":
        return loaded.model.pooled_states(**inputs)[0]
    return loaded.model.encoder.feature_extractor(**inputs)[0].T


def features_key(loaded: LoadedModel, waveforms: Waveforms, rows: np.ndarray, takes: str) -> str:
    """A name for what comes of the clips in `rows`: of the clips, the settings and all that is frozen."""
    backbone, model = loaded.backbone, loaded.model
    config = backbone.config.to_dict() if backbone.is_stock else backbone.config.to_json()
    extractor = backbone.feature_extractor
    settings = extractor.to_dict() if hasattr(extractor, "to_dict") else extractor.to_json()
    made_from = hashlib.sha256(repr((takes, config, settings)).encode() + rows.tobytes())
    for tensor in [*model.parameters(), *model.buffers()]:
        if not tensor.requires_grad:
            made_from.update(tensor.detach().cpu().numpy().tobytes())
    clips_key = cache_key(waveforms.clips, waveforms.options)
    return f"{clips_key}-{made_from.hexdigest()[:16]}"
