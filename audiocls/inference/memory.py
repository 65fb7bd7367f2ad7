"""Whether a long recording, classified whole, fits into the computer's memory: Linux would kill us if not."""

import contextlib
import math
from pathlib import Path

from audiocls.model.backbone import Backbone

VALUES_A_FRAME = 16  # times the hidden size: what encoder.py holds of long audio; 10 to 13 were measured
CONVOLUTIONS = 2.5  # that transformers' own models hold as large as the first: in- and output, and a norm's
BATCHED = 3.5  # the same of a batch of clips of up to 30 s, whoever computes it; 3 to 3.5 were measured


def bytes_a_sample(backbone: Backbone) -> float:
    """About what classifying a long recording takes for each sample, beside the weights; 0: not known."""
    config = backbone.config
    if not hasattr(config, "conv_dim"):
        return 0.0
    if backbone.is_stock:  # whole
        return 4 * CONVOLUTIONS * config.conv_dim[0] / config.conv_stride[0]
    values = VALUES_A_FRAME * config.hidden_size
    if config.use_weighted_layer_sum:  # all hidden states, and each times its weight
        values += 2 * (config.num_hidden_layers + 1) * config.hidden_size
    return 4 * values / math.prod(config.conv_stride)


def samples_a_batch(backbone: Backbone, free: float) -> int | None:
    """How many samples, padding included, a batch has room for in `free` bytes; None: any number, or unknown.

    Clips of up to 30 s are not computed in blocks: each of their samples takes several times as much.
    """
    of_long, config = bytes_a_sample(backbone), backbone.config
    if not of_long or math.isinf(free):
        return None
    of_short = 4 * BATCHED * config.conv_dim[0] / config.conv_stride[0]
    return int(free / max(of_long, of_short))


def free_bytes(root: Path = Path("/")) -> float:
    """What this process may still take of the memory of its machine, or of its container; infinite if untold.

    Both are Linux's to tell, in files below `root`.
    """
    free = [math.inf]
    machine = numbers_in(root / "proc/meminfo")  # in kB
    if "MemAvailable:" in machine:
        free.append(1024 * machine["MemAvailable:"])
    group = root / "sys/fs/cgroup"  # what is cached of files in it is given up
    with contextlib.suppress(OSError, ValueError, KeyError):  # no container, or "max"
        free.append(int((group / "memory.max").read_text()) - numbers_in(group / "memory.stat")["anon"])
    return max(0, min(free))


def numbers_in(file: Path) -> dict[str, int]:
    """A file of lines with a name and a number; empty where it is not there."""
    try:
        lines = [line.split() for line in file.read_text().splitlines()]
    except OSError:
        return {}
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}
