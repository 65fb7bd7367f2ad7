"""How many clips a device has room for: counted, or found by trying; and advised where it was too many."""

import contextlib
import gc
import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from audiocls.config import TrainConfig
from audiocls.data.collators import Batch
from audiocls.data.loader import ClipDataset
from audiocls.devices import autocast, pick_precision
from audiocls.distributed import ALONE, Ranks
from audiocls.errors import OutOfMemory, is_out_of_memory, number_of
from audiocls.model.backbone import LoadedModel
from audiocls.streams import say
from audiocls.training.loss import loss_sum

HIGHEST_SHARE = 0.9  # of the GPU's memory that a trial may take: what is free lies in pieces
LEAST_SECONDS = 100  # of audio, which a GPU computes about as fast as its host asks for it (docs/scaling.md)
PLAIN_SHARE = 0.5  # of the memory that is free: what fits into this needs no trial
WITH_TEMPORARIES = 1.5  # what training takes, as a multiple of what is kept for the backward pass


def fit_batch_size(
    config: TrainConfig,
    loaded: LoadedModel,
    clips: ClipDataset,
    device: torch.device,
    before: int | None = None,
    ranks: Ranks = ALONE,
) -> TrainConfig:
    """The config with a number for `--batch-size auto`: the same steps, in micro-batches that fit.

    On a GPU that is a rank's share of the step (alone: all of it), where it plainly fits, or as much of it as
    is found to fit by trying, on all ranks; elsewhere the usual, if the share is not less. A run that goes on
    has what it had `before`. Raises OutOfMemory where not even one clip fits.
    """
    if config.batch_size != "auto":
        return config
    share = ranks_share(config, clips, loaded.backbone.sampling_rate, device, ranks)
    size = before or min(config.micro_batch_size, share)
    if device.type == "cuda" and not before:
        size = min(share, len(clips))
        needed, free = bytes_needed(size, config, loaded, clips, device, ranks), free_bytes(device)
        if needed <= PLAIN_SHARE * free:
            batches = f"a step of {number_of(size, 'clip')} is one micro-batch"
            if ranks.world_size > 1:
                batches = f"each rank computes {number_of(size, 'clip')} at once"
            say(f"{batches}: it needs about {needed / 1e9:.1f} of the {free / 1e9:.0f} GB that are free")
        else:
            size = largest_that_fits(size, config, loaded, clips, device, ranks)
            say(f"--batch-size auto: {size} of the longest clips fit")
        size = min(ranks.gather(size))
    accumulation, rest = divmod(config.clips_per_step, size)
    return replace(
        config,
        batch_size=size,
        gradient_accumulation_steps=accumulation,
        global_batch_size=config.clips_per_step if rest else None,
    )


def ranks_share(
    config: TrainConfig, clips: ClipDataset, sampling_rate: int, device: torch.device, ranks: Ranks
) -> int:
    """How many of a step's clips a rank computes at once: all that are its own, or half of them.

    Sorted by length, they make a long micro-batch for one rank and a short one for another; of twice as many
    each has a long and a short one. But less than LEAST_SECONDS at once leave a GPU waiting for its host.
    """
    share = math.ceil(config.clips_per_step / ranks.world_size)
    seconds = share * clips.num_samples.mean() / sampling_rate
    is_enough = device.type != "cuda" or seconds >= 2 * LEAST_SECONDS
    return math.ceil(share / 2) if ranks.world_size > 1 and config.bucket and is_enough else share


def largest_that_fits(
    size: int,
    config: TrainConfig,
    loaded: LoadedModel,
    clips: ClipDataset,
    device: torch.device,
    ranks: Ranks = ALONE,
) -> int:
    """At most `size`, of which halves are tried. Raises OutOfMemory where not even one clip fits."""
    while not fits(size, config, loaded, clips, device, ranks):
        if size == 1:
            raise OutOfMemory(f"Not even one clip fits into the GPU's memory. Try {smaller_work(config)}.")
        size = -(-size // 2)
    return size


def bytes_needed(
    size: int,
    config: TrainConfig,
    loaded: LoadedModel,
    clips: ClipDataset,
    device: torch.device,
    ranks: Ranks = ALONE,
) -> float:
    """About what training takes on `size` clips as long as the longest, beside the weights.

    Counted is what the forward pass of one such clip keeps for the backward pass, and that of two: about 46
    MB a second of audio for wav2vec2-base in bf16. Infinite is what there is no memory for, and what is not
    seen: of activations that are computed again.
    """
    if config.activation_checkpointing:
        return math.inf
    model = loaded.model.to(device).train()
    trained = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
    try:
        one, two = (bytes_kept(count, config, loaded, clips, device) for count in (1, min(2, len(clips))))
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return math.inf
    # The gradient and AdamW's two moments; what is kept once (copies of weights in bf16) and for a clip; and
    # what is kept for each further one.
    further = clips_at_once(size, config, loaded, clips) - 1
    return values_a_weight(ranks) * trained + num_copies(config) * WITH_TEMPORARIES * (
        one + further * (two - one)
    )


def bytes_kept(
    size: int, config: TrainConfig, loaded: LoadedModel, clips: ClipDataset, device: torch.device
) -> int:
    """What is kept for the backward pass of the `size` longest clips, without the weights."""
    sizes: dict[int, int] = {}  # of each piece of memory

    def count(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    counting = torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor)
    with as_it_was(loaded), counting:
        loss_of(config, loaded, longest(size, config, loaded, clips, device), device)
    weights = {parameter.untyped_storage().data_ptr() for parameter in loaded.model.parameters()}
    return sum(nbytes for pointer, nbytes in sizes.items() if pointer not in weights)


def fits(
    size: int,
    config: TrainConfig,
    loaded: LoadedModel,
    clips: ClipDataset,
    device: torch.device,
    ranks: Ranks = ALONE,
) -> bool:
    """Whether the GPU has room to train on the `size` longest clips at once. The model does not change."""
    gc.collect()  # what the last trial left in its exception's frames
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    model = loaded.model.to(device).train()
    most = HIGHEST_SHARE * (free_bytes(device) + torch.cuda.memory_reserved(device))
    try:
        # What is there while a later micro-batch is computed: two moments, and the gradient so far.
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        kept = [torch.zeros_like(parameter) for parameter in trained for _ in range(values_a_weight(ranks))]
        with as_it_was(loaded):
            loss_of(config, loaded, longest(size, config, loaded, clips, device), device).backward()
        del kept
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        model.zero_grad()
    return torch.cuda.max_memory_reserved(device) * num_copies(config) <= most


def values_a_weight(ranks: Ranks) -> int:
    """Beside a trained weight: its gradient, AdamW's two moments, and what ranks exchange the gradient in."""
    return 3 if ranks.world_size == 1 else 4


def num_copies(config: TrainConfig) -> int:
    """How often the memory of a micro-batch is taken: a CUDA graph's is beside that of what runs without."""
    return 2 if config.cuda_graphs else 1


def longest(
    size: int, config: TrainConfig, loaded: LoadedModel, clips: ClipDataset, device: torch.device
) -> Batch:
    """As many of the `size` longest clips as are ever in a micro-batch."""
    indices = (-clips.num_samples).argsort(kind="stable")[: clips_at_once(size, config, loaded, clips)]
    collate = loaded.training_collator(config.seed)
    return collate([clips.at_its_longest(index) for index in indices.tolist()]).to(device)


def clips_at_once(size: int, config: TrainConfig, loaded: LoadedModel, clips: ClipDataset) -> int:
    """`size`, or fewer of the longest clips where `--max-batch-seconds` says so; one at least."""
    if config.max_batch_seconds is None:
        return size
    seconds = clips.num_samples.max() / loaded.backbone.sampling_rate
    return max(1, min(size, int(config.max_batch_seconds / seconds)))


def loss_of(config: TrainConfig, loaded: LoadedModel, batch: Batch, device: torch.device) -> Tensor:
    """As the loop computes it."""
    with autocast(device, pick_precision(config.precision, device)):
        logits = loaded.model(**batch.inputs)
    return loss_sum(logits, batch.labels, config.label_smoothing)


@contextlib.contextmanager
def as_it_was(loaded: LoadedModel) -> Iterator[None]:
    """For trials: our own models' LayerDrop, by which they would differ, is off; buffers are put back."""
    before = [(buffer, buffer.clone()) for buffer in loaded.model.buffers()]
    transformer = None if loaded.backbone.is_stock else loaded.model.encoder.encoder
    if transformer is not None:
        config, transformer.config = transformer.config, replace(transformer.config, layerdrop=0.0)
    try:
        yield
    finally:
        if transformer is not None:
            transformer.config = config
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)


def free_bytes(device: torch.device) -> int:
    """What of the GPU's memory neither this process nor another one holds."""
    return torch.cuda.mem_get_info(device)[0]


def advice(config: TrainConfig) -> str:
    """The largest micro-batch of at most half the size that divides the step evenly."""
    if config.micro_batch_size == 1:
        return smaller_work(config)
    step = config.clips_per_step
    most = min(config.micro_batch_size // 2, step)
    size = next(size for size in range(most, 0, -1) if step % size == 0)
    return f"--batch-size {size} --gradient-accumulation-steps {step // size}: the same steps in less memory"


def smaller_work(config: TrainConfig) -> str:
    ways = [] if config.activation_checkpointing else ["--activation-checkpointing"]
    ways += ["a shorter --max-seconds"] + (["--freeze feature-encoder"] if config.freeze == "nothing" else [])
    return " or ".join(ways)
