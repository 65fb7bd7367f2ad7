"""A head that fits the pretrained encoder before that is trained itself.

Under a random head the first steps of fine-tuning change the encoder for nothing, and it generalises worse
than it did (LP-FT: Kumar et al. 2022, https://arxiv.org/abs/2202.10054). So the head is trained first, on the
frozen encoder's output: each clip goes through the encoder once, and the steps after that take milliseconds.
"""

import time
from pathlib import Path

import torch

from audiocls.config import TrainConfig
from audiocls.data.batch_plan import BatchPlan
from audiocls.data.loader import step_batches
from audiocls.data.prepare import RunData
from audiocls.lines import duration
from audiocls.model.backbone import LoadedModel
from audiocls.model.freezing import freeze
from audiocls.streams import progress, say
from audiocls.training.features import cache_features
from audiocls.training.loss import loss_sum
from audiocls.training.optim import learning_rate_factor, make_optimizer, set_learning_rates
from audiocls.training.rules import HEAD_LEARNING_RATE

STEPS, CLIPS_PER_STEP = 1_000, 32
WARMUP_RATIO = 0.1


def train_head_first(
    config: TrainConfig, loaded: LoadedModel, data: RunData, cache_dir: Path, device: torch.device
) -> None:
    """Train the head, in place, on what the frozen encoder makes of the training clips.

    What of the model is to be trained afterwards stays as it was. It is a
    pure function of the model, the clips and the seed: a run that goes on does it again, and finds the same.
    """
    model = loaded.model.to(device)
    is_trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    freeze(loaded, "encoder")
    above, pooled = cache_features(loaded, data, "pooled", cache_dir, device)
    clips, began = pooled.train, time.perf_counter()
    optimizer = make_optimizer(model, HEAD_LEARNING_RATE, config.weight_decay)
    plan = BatchPlan(
        num_clips=len(clips),
        batch_size=CLIPS_PER_STEP,
        clips_per_step=CLIPS_PER_STEP,
        seed=config.seed,
        epochs=1,
        max_steps=STEPS,
        balanced_labels=clips.labels if config.balance_classes == "yes" else None,
    )
    batches = step_batches(clips, plan.steps_from(0, 0), above.collator(), num_workers=0, device=device)
    factors = learning_rate_factor(torch.arange(STEPS, device=device), STEPS, WARMUP_RATIO, "linear")
    losses = torch.zeros(STEPS, device=device)
    for number, (step, ((_, batch, _),)) in enumerate(progress(batches, "head first", STEPS, unit="step")):
        set_learning_rates(optimizer, factors[number])
        batch = batch.to(device)
        logits = model(**batch.inputs)
        loss = loss_sum(logits, batch.labels, config.label_smoothing) / step.num_clips
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses[number] = loss.detach()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_trained[name])
    ended = f"{losses[: STEPS // 10].mean():.3f} to {losses[-STEPS // 10 :].mean():.3f}"
    took = duration(time.perf_counter() - began)
    say(f"head first: {STEPS:,} steps on the frozen encoder's output, loss {ended}, in {took}")
