"""The last layer of a trained model, for other labels: a label that both have keeps its row."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from audiocls.data.columns import clean
from audiocls.errors import MOST_EXAMPLES, named

Tensors = dict[str, Tensor]


def head_for(
    labels: Sequence[str], trained_labels: Sequence[str], tensors: Tensors, config: Any
) -> tuple[Tensors, str | None]:
    """A model's tensors with a last layer for `labels`, and a line on what became of the one they had.

    A label that is among `trained_labels`, which name the rows of the layer they had, keeps its row, weight
    and bias; the others get a row as transformers draws it. Labels are the same whatever Unicode form they
    are written in. A layer that `trained_labels` do not fit is taken out. Without one, as in a published
    backbone, the tensors stay as they are, and there is no line.

    `config` is an EncoderConfig, or transformers' config of any architecture that classifies audio.
    """
    is_ast = config.model_type == "audio-spectrogram-transformer"
    layer = "classifier.dense" if is_ast else "classifier"
    layer_names = (f"{layer}.weight", f"{layer}.bias")
    old = [tensors[name] for name in layer_names if name in tensors]
    if not old:
        return tensors, None
    width = config.hidden_size if is_ast else config.classifier_proj_size
    rows = len(trained_labels)
    if not rows or [list(tensor.shape) for tensor in old] != [[rows, width], [rows]]:
        rest = {name: tensor for name, tensor in tensors.items() if name not in layer_names}
        return rest, f"its head fits no labels that its config.json names: all {len(labels)} are new"

    row_of = {clean(label): row for row, label in enumerate(trained_labels)}
    weight, bias = torch.zeros(len(labels), width), torch.zeros(len(labels))
    spread = config.init_std if config.model_type == "whisper" else config.initializer_range
    nn.init.normal_(weight, std=spread)
    for new_row, label in enumerate(labels):
        if (old_row := row_of.get(clean(label))) is not None:
            weight[new_row], bias[new_row] = (tensor[old_row] for tensor in old)

    trained = {clean(label) for label in labels}
    new = [label for label in labels if clean(label) not in row_of]
    gone = [label for label in trained_labels if clean(label) not in trained]
    new_names = f" ({named(new, MOST_EXAMPLES)})" if new else ""
    said = f"labels whose row of its head is kept: {len(labels) - len(new)}; new: {len(new)}{new_names}"
    said += f"; of its own not trained: {len(gone)} ({named(gone, MOST_EXAMPLES)})" if gone else ""
    return tensors | dict(zip(layer_names, (weight, bias), strict=True)), said
