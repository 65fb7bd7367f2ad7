"""The window of a spectrogram model, Whisper or AST, cut to what the clips need: its weights stay the same.

Every clip is padded to the window. Published ones take 10 s or 30 s, much work for clips of 1 s.
"""

import copy
import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from audiocls.model.backbone import Backbone, samples_of_filter_windows


def cut_window(backbone: Backbone, seconds: float) -> Backbone:
    """The backbone with the shortest window that takes clips of `seconds`.

    Whisper's is of whole seconds. AST's ends where a patch does: no frame beyond the last patch is used.
    A model without a fixed window, or whose window is no longer than that, comes back as it is.
    `load_for_training` cuts the published position embeddings to the window.
    """
    longest, rate = backbone.max_samples, backbone.sampling_rate
    if longest is None:
        return backbone
    samples = round(seconds * rate)
    config, extractor = copy.deepcopy((backbone.config, backbone.feature_extractor))
    if config.model_type == "whisper":
        extractor.chunk_length = max(1, math.ceil(samples / rate))
        extractor.n_samples = extractor.chunk_length * rate
        extractor.nb_max_frames = extractor.n_samples // extractor.hop_length
        config.max_source_positions, odd = divmod(extractor.nb_max_frames, 2)  # a stride of 2 halves them
        if odd or extractor.n_samples >= longest:
            return backbone
    elif isinstance(config.patch_size, int):
        ends_of_patches = range(config.patch_size, config.max_length, config.time_stride)
        enough = (end for end in ends_of_patches if samples_of_filter_windows(end, rate) >= samples)
        if (max_length := next(enough, None)) is None:
            return backbone
        config.max_length = extractor.max_length = max_length
    else:  # loading it says that it is wrong
        return backbone
    return dataclasses.replace(backbone, config=config, feature_extractor=extractor)


def cut_positions(tensors: dict[str, Tensor], config: Any) -> dict[str, Tensor]:
    """A model's tensors; of its position embeddings those of the window that `config` has, the first in time.

    Embeddings of a window that is no longer, or that do not fit `config` otherwise, stay as they are.
    """
    tensors = dict(tensors)
    for name, positions in tensors.items():
        match config.model_type:
            case "whisper" if name.endswith("encoder.embed_positions.weight"):  # [positions, hidden]
                tensors[name] = positions[: config.max_source_positions]
            case "audio-spectrogram-transformer" if name.endswith("embeddings.position_embeddings"):
                # [1, 2 + rows * columns, hidden]: two tokens, then the patches of the spectrogram, a row for
                # each band of frequencies after the other; a row is in the order of time.
                rows = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
                columns = (config.max_length - config.patch_size) // config.time_stride + 1
                tokens, patches = positions[:, :2], positions[:, 2:]
                if min(rows, columns) > 0 and patches.shape[1] % rows == 0:
                    patches = patches.unflatten(1, (rows, -1))[:, :, :columns].flatten(1, 2)
                    tensors[name] = torch.cat((tokens, patches), dim=1)
    return tensors
