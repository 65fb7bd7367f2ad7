"""Frozen work done once: the frozen convolutional encoder's output, computed before training and read back.

With `--freeze-feature-encoder` that output is a function of the clip alone, and a third of a forward pass.
Each clip goes through the encoder once, alone, and is kept in half precision in the cache folder, named after
the clips and the weights: another run on the same data finds it there.
"""

import contextlib
import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from audiocls.data.cache import CacheWriter, FlatFile, Waveforms, cache_key
from audiocls.data.loader import ClipDataset, Example
from audiocls.data.prepare import RunData
from audiocls.errors import InputOutputFailed
from audiocls.model.loaded import LoadedModel


@dataclasses.dataclass
class Features:
    """What the encoder made of clips: `features[i]` is float16 [frames, channels]."""

    waveforms: Waveforms
    cache: FlatFile
    channels: int

    def __getitem__(self, index: int) -> np.ndarray:
        return self.cache[index].reshape(-1, self.channels)


def cache_features(
    loaded: LoadedModel, data: RunData, cache_dir: Path, device: torch.device
) -> tuple[LoadedModel, RunData]:
    """Model and data as before, but for clips that have been through the model's frozen encoder.

    Raises InputOutputFailed where the cache folder cannot hold them.
    """
    waveforms: Waveforms = data.train.decoded
    convolutions = loaded.model.encoder.feature_extractor
    channels = loaded.backbone.config.conv_dim[-1]
    rows = np.sort(np.concatenate([part.rows for part in (data.train, data.evaluation, data.test) if part]))
    frames = np.zeros(len(waveforms.clips), np.int64)
    frames[rows] = [loaded.backbone.frames_of_samples(int(n)) for n in waveforms.num_samples[rows]]
    num_bytes = 2 * channels * int(frames.sum())
    extractor, config = loaded.backbone.feature_extractor, loaded.backbone.config
    what_else = (extractor.do_normalize, extractor.padding_value, config.feat_extract_activation)
    made_from = hashlib.sha256(repr(what_else).encode() + frames.tobytes())  # and of which clips can be used
    for tensor in convolutions.state_dict().values():
        made_from.update(tensor.cpu().numpy().tobytes())
    key = cache_key(waveforms.clips, waveforms.sampling_rate, waveforms.max_samples)
    folder = cache_dir / "features" / f"{key}-{made_from.hexdigest()[:16]}"

    if not is_whole(folder, num_bytes):
        collate = loaded.collator()
        convolutions.to(device)
        with CacheWriter(folder) as cache, torch.inference_mode():
            for row in tqdm(rows, "encoding", disable=None, leave=False):
                input_values = collate([Example(waveforms[row])]).inputs["input_values"].to(device)
                cache.write(convolutions(input_values)[0].T.half().contiguous().cpu().numpy())
            cache.publish({"frames": frames.tolist()})
        if not is_whole(folder, num_bytes):
            raise InputOutputFailed(
                f"{folder} cannot hold {num_bytes / 1e9:.1f} GB of features: leave out "
                "--cache-features, or name another --cache-dir."
            )
    features = Features(
        waveforms, FlatFile(folder / CacheWriter.VALUES, frames, np.float16, channels), channels
    )

    def with_features(clips: ClipDataset) -> ClipDataset:
        return dataclasses.replace(clips, waveforms=features)

    return dataclasses.replace(loaded, takes_features=True), dataclasses.replace(
        data,
        train=with_features(data.train),
        evaluation=with_features(data.evaluation),
        test=with_features(data.test) if data.test else None,
    )


def is_whole(folder: Path, num_bytes: int) -> bool:
    with contextlib.suppress(OSError):
        return (folder / CacheWriter.VALUES).stat().st_size == num_bytes
    return False
