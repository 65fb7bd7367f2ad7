"""Logits and labels -> the loss: used by the loop, the head's training before it, and the memory search."""

from torch import Tensor
from torch.nn import functional as F


def loss_sum(logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    """Cross-entropy summed over a batch's clips, a float32 scalar.

    `logits` float [batch, labels], `labels` int64 [batch]. A sum, not a mean: the loop divides it by the
    number of clips in the whole optimizer step.
    """
    # float32: a bf16 cross-entropy loses digits with many classes.
    return F.cross_entropy(logits.float(), labels, reduction="sum", label_smoothing=label_smoothing)
