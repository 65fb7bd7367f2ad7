"""Frozen work done once: the frozen convolutional encoder's output, computed before training and read back.

With `--freeze-feature-encoder` that output is a function of the clip alone, and a third of a forward pass.
Each clip goes through the encoder once, alone, and is kept in half precision in the cache folder, named after
the clips and the weights: another run on the same data finds it there.
"""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from audiocls.data.cache import CacheWriter, FlatFile, Waveforms, cache_key
from audiocls.data.collators import Example
from audiocls.data.prepare import RunData
from audiocls.errors import InputOutputFailed
from audiocls.model.backbone import LoadedModel


@dataclasses.dataclass
class Features:
    """What the encoder made of clips: `features[i]` is float16 [frames, channels]."""

    waveforms: Waveforms
    cache: FlatFile

    def __getitem__(self, index: int) -> np.ndarray:
        return self.cache[index]


def cache_features(
    loaded: LoadedModel, data: RunData, cache_dir: Path, device: torch.device
) -> tuple[LoadedModel, RunData]:
    """The model, set to take features, and the data with features in the place of waveforms.

    Raises InputOutputFailed where the cache folder cannot hold them.
    """
    waveforms: Waveforms = data.train.decoded
    convolutions = loaded.model.encoder.feature_extractor
    rows = np.sort(np.concatenate([part.rows for part in data.parts.values()]))
    frames = np.zeros(len(waveforms.clips), np.int64)
    frames[rows] = [loaded.backbone.frames_of_samples(int(n)) for n in waveforms.num_samples[rows]]
    extractor, config = loaded.backbone.feature_extractor, loaded.backbone.config
    what_else = (extractor.do_normalize, extractor.padding_value, config.feat_extract_activation)
    made_from = hashlib.sha256(repr(what_else).encode() + frames.tobytes())  # and of which clips can be used
    for tensor in convolutions.state_dict().values():
        made_from.update(tensor.cpu().numpy().tobytes())
    key = cache_key(
        waveforms.clips, waveforms.sampling_rate, waveforms.max_samples, waveforms.max_decode_seconds
    )
    folder = cache_dir / "features" / f"{key}-{made_from.hexdigest()[:16]}"

    cache = FlatFile(folder / CacheWriter.VALUES, frames, np.float16, config.conv_dim[-1])
    if not cache.is_whole():
        collate = loaded.collator()
        convolutions.to(device)
        with CacheWriter(folder) as writer, torch.inference_mode():
            for row in tqdm(rows, "encoding", disable=None, leave=False):
                input_values = collate([Example(waveforms[row])]).inputs["input_values"].to(device)
                writer.write(convolutions(input_values)[0].T.half().contiguous().cpu().numpy())
            writer.publish({"frames": frames.tolist()})
        if not cache.is_whole():
            raise InputOutputFailed(
                f"{folder} cannot hold {cache.num_bytes / 1e9:.1f} GB of features: leave out "
                "--cache-features, or name another --cache-dir."
            )
    features = Features(waveforms, cache)
    parts: dict[str, Any] = {
        part: dataclasses.replace(clips, waveforms=features) for part, clips in data.parts.items()
    }
    return dataclasses.replace(loaded, takes_features=True), dataclasses.replace(data, **parts)
