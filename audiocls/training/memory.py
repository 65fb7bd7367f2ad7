"""How many clips a GPU has room for: found by trying, and advised where it was too many."""

import dataclasses
import gc

import torch

from audiocls.config import TrainConfig
from audiocls.data.loader import ClipDataset
from audiocls.devices import autocast, pick_precision
from audiocls.errors import OutOfMemory, UserError, is_out_of_memory
from audiocls.model.backbone import LoadedModel
from audiocls.streams import say
from audiocls.training.loss import loss_sum

HIGHEST_SHARE = 0.9  # of the GPU's memory that a trial may take: what is free lies in pieces


def fit_batch_size(
    config: TrainConfig, loaded: LoadedModel, clips: ClipDataset, device: torch.device
) -> TrainConfig:
    """The config with a number for `--batch-size auto`: the same steps, in micro-batches that fit.

    Raises UserError where there is no GPU, OutOfMemory where not even one clip fits.
    """
    if config.batch_size != "auto":
        return config
    if device.type != "cuda":
        raise UserError(f"--batch-size auto tries what a GPU has room for: on {device.type}, give a number.")
    size = min(config.clips_per_step, len(clips))
    while not fits(size, config, loaded, clips, device):
        if size == 1:
            raise OutOfMemory(f"Not even one clip fits into the GPU's memory. Try {smaller_work(config)}.")
        size = -(-size // 2)
    say(f"--batch-size auto: {size} of the longest clips fit")
    return dataclasses.replace(config, batch_size=size, global_batch_size=config.clips_per_step)


def fits(
    size: int, config: TrainConfig, loaded: LoadedModel, clips: ClipDataset, device: torch.device
) -> bool:
    """Whether the GPU has room to train on the `size` longest clips at once. The model does not change."""
    longest = (-clips.num_samples).argsort(kind="stable")[:size].tolist()
    gc.collect()  # what the last trial left in its exception's frames
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    model = loaded.model.to(device).train()
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        # What is there while a later micro-batch is computed: two moments, and the gradient so far.
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        kept = [torch.zeros_like(parameter) for parameter in trained for _ in range(3)]
        batch = loaded.training_collator(config.seed)([clips.at_its_longest(index) for index in longest]).to(
            device
        )
        with autocast(device, pick_precision(config.precision, device)):
            logits = model(**batch.inputs)
        loss_sum(logits, batch.labels, config.label_smoothing).backward()
        del kept
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        model.zero_grad()
        for buffer, before in buffers:
            buffer.copy_(before)
    total = torch.cuda.get_device_properties(device).total_memory
    return torch.cuda.max_memory_reserved(device) <= HIGHEST_SHARE * total


def advice(config: TrainConfig) -> str:
    """The largest micro-batch of at most half the size that divides the step evenly."""
    if config.batch_size in ("auto", 1):
        return smaller_work(config)
    step = config.clips_per_step
    size = next(size for size in range(int(config.batch_size) // 2, 0, -1) if step % size == 0)
    accumulation = step // size
    return f"--batch-size {size} --gradient-accumulation-steps {accumulation}: the same steps in less memory"


def smaller_work(config: TrainConfig) -> str:
    frozen = " or --freeze feature-encoder" if config.freeze == "nothing" else ""
    return f"a shorter --max-seconds{frozen}"
