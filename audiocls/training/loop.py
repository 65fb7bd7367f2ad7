"""THE loop: every step from a batch to the best checkpoint, in the order in which it happens."""

import math
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from audiocls.config import TrainConfig, seconds_of
from audiocls.data.batch_plan import BatchPlan, in_batches
from audiocls.data.collators import Batch, length_grid, length_quantiles
from audiocls.data.loader import ClipDataset, load_batches, step_batches
from audiocls.data.prepare import RunData
from audiocls.devices import Readback, autocast, pick_precision
from audiocls.distributed import ALONE, Ranks
from audiocls.errors import NumbersBroke, Stopped, UserError, number_of
from audiocls.log.phases import StepFacts
from audiocls.log.run_log import RunLog, SinceLastLog
from audiocls.model.backbone import LoadedModel
from audiocls.signals import STOPPED_AT_THE_END, StopSignal
from audiocls.streams import say
from audiocls.training.checkpoint import TrainState, export_best, load_newest, save_checkpoint, share_state
from audiocls.training.evaluation import evaluate, is_better, keep_test_predictions, prediction_lines
from audiocls.training.graphs import Graphs
from audiocls.training.loss import loss_sum
from audiocls.training.optim import (
    learning_rate_factor,
    learning_rates,
    make_optimizer,
    seed_everything,
    set_learning_rates,
    take_step,
)

MOST_NON_FINITE_IN_A_ROW = 20


@dataclass(frozen=True)
class InFlight:
    """An optimizer step that the device has been asked for."""

    step: int
    passes: float  # over the training clips, with this step
    num_clips: int
    numbers: Readback  # sums over ranks as the loop makes them; the gradient's norm; the steps taken so far


def train(
    config: TrainConfig,
    loaded: LoadedModel,
    data: RunData,
    device: torch.device,
    run_folder: Path,
    log: RunLog,
    stop: StopSignal,
    ranks: Ranks = ALONE,
) -> TrainState:
    """Train to the end of the plan, from its beginning or, with `config.resume`, from the newest checkpoint.

    Each of several ranks computes some of a step's micro-batches; the first one writes.

    Raises Stopped after a signal, with everything up to the last whole optimizer step saved; NumbersBroke
    where the loss or the gradient is not finite again and again.
    """
    model, backbone = loaded.model.to(device).train(), loaded.backbone
    precision = pick_precision(config.precision, device)
    optimizer = make_optimizer(model, float(config.learning_rate), config.weight_decay)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    max_seconds = config.max_batch_seconds
    plan = BatchPlan(
        num_clips=len(data.train),
        batch_size=config.micro_batch_size,
        clips_per_step=config.clips_per_step,
        seed=config.seed,
        epochs=int(config.epochs),
        max_steps=config.max_steps,
        lengths=data.train.num_samples if config.bucket else None,
        balanced_labels=data.train.labels if config.balance_classes == "yes" else None,
        max_batch_samples=round(max_seconds * backbone.sampling_rate) if max_seconds else None,
    )
    state = TrainState()
    if config.resume and ranks.is_first:
        state = load_newest(run_folder, model, optimizer, scaler)
    state = share_state(ranks, model, optimizer, scaler, state)
    replica = ranks.wrapped(model)
    if state.step > plan.total_steps:
        raise UserError(
            f"The run has gone through {state.step} steps, more than {plan.total_steps}: ask for more."
        )
    going_on = f", going on after step {state.step}" if state.step else ""
    of_clips = f"{plan.total_steps / plan.steps_per_epoch:.4g} passes of {number_of(len(data.train), 'clip')}"
    say(f"{plan.total_steps:,} steps: {of_clips}, {config.clips_per_step} at a time{going_on}")
    if state.total_steps not in (None, plan.total_steps):
        say(f"the learning rate's schedule is now over {plan.total_steps} steps, not {state.total_steps}")
    state.total_steps = plan.total_steps
    began = time.perf_counter() - state.wall_seconds  # as if it had never been interrupted
    last_save, since_save = time.perf_counter(), 0.0
    agreed = stop if ranks.world_size == 1 else Agreed()  # once all ranks know of a stop signal to one
    phase = log.phase  # names what the loop is doing, for the bar and --profile

    schedule = plan.total_steps, config.warmup_ratio, config.lr_scheduler
    steps_taken = torch.tensor(state.steps_taken, device=device)  # of which the device knows first
    in_flight: deque[InFlight] = deque()

    def settle(leave: int = 0) -> None:
        """Wait for the numbers of the steps in flight, and log them; those of the newest `leave` may wait."""
        nonlocal since_save
        while len(in_flight) > leave:
            done = in_flight.popleft()
            phase("device wait")  # the step's only one
            loss, samples, padding, stops, since_save, norm, taken = done.numbers.wait().tolist()
            if stops:  # not `|=`: a signal may come between its reading and its writing
                agreed.requested = True
            factor = learning_rate_factor(torch.tensor(state.steps_taken), *schedule)
            rates = learning_rates(optimizer, factor.item())
            is_skipped = taken == state.steps_taken
            state.non_finite_in_a_row = state.non_finite_in_a_row + 1 if is_skipped else 0
            state.steps_taken = int(taken)
            seconds = log.take_step_seconds()
            rate = backbone.sampling_rate
            facts = StepFacts(loss, done.num_clips, samples / rate, padding / rate, seconds)
            state.since_last_log.add(facts)
            log.advance(facts)
            phase("between steps")
            if state.non_finite_in_a_row == MOST_NON_FINITE_IN_A_ROW:
                raise NumbersBroke(
                    f"{MOST_NON_FINITE_IN_A_ROW} losses or gradients in a row were not finite, up to step "
                    f"{done.step}. Try a lower --learning-rate, or --precision fp32."
                )
            if done.step == plan.total_steps or done.step % config.log_every == 0:
                log.train(done.step, done.passes, state.since_last_log, rates, norm)
                state.since_last_log = SinceLastLog()

    def save(predictions: str | None = None) -> None:
        nonlocal last_save, since_save
        settle()
        phase("save")
        last_save, since_save = time.perf_counter(), 0.0
        state.wall_seconds = last_save - began
        state.log_bytes = log.num_bytes
        keep = config.save_total_limit
        if ranks.is_first:
            save_checkpoint(run_folder, loaded, optimizer, scaler, state, keep=keep, predictions=predictions)

    def save_and_leave() -> NoReturn:
        save()
        ranks.decide(lambda: None)  # the first one has saved by now: it ends when the others do
        where = f"step {state.step} of {plan.total_steps}"
        raise Stopped(f"stopped after {where}: the same command with --resume goes on from there")

    def evaluate_and_save() -> None:
        settle()
        if agreed.requested:
            save_and_leave()
        phase("evaluation")
        ranks.share(model.buffers())  # BatchNorm's statistics are of each rank's own clips
        batches = evaluation_batches(config, data, data.evaluation, loaded, device, stop, ranks)
        result = evaluate(model, batches, device, precision, stop, ranks)  # leaves the model training
        if result is None:  # a stop was requested meanwhile: --resume evaluates again
            save_and_leave()
        passes = plan.passes(state.epoch, state.step_in_epoch)
        is_best = ranks.decide(lambda: is_better(result.scores, state.best_score, config.best_metric))
        if is_best:
            state.best_score = result.scores[config.best_metric]
            state.best_step, state.best_epoch = state.step, passes
        log.evaluation(state.step, passes, result.scores, config.best_metric, state.best_score, is_best)
        state.evaluation_is_due = False
        save(predictions=prediction_lines("evaluation", data.evaluation, result) if is_best else None)
        if is_best and ranks.is_first:
            export_best(run_folder, state.step)

    # Draws SpecAugment's masks, too.
    edges = lengths_to_pad_to(config, data, data.train, loaded, device)
    collate = loaded.training_collator(config.seed, edges)
    to_come = plan.steps_from(state.epoch, state.step_in_epoch)
    steps = step_batches(
        data.train,
        to_come,
        collate,
        num_workers=config.num_workers,
        device=device,
        stop=agreed,
        rank=ranks.rank,
        world_size=ranks.world_size,
    )

    def forward_backward(batch: Batch, num_clips: int) -> Tensor:
        """Add a micro-batch's part to the gradient; returns the sum of its losses."""
        with autocast(device, precision):
            logits = replica(**batch.inputs)
        summed_loss = loss_sum(logits, batch.labels, config.label_smoothing)

        phase("backward")
        # Divided by the step's true number of clips, so that one large batch, any division of it into
        # micro-batches and an epoch's short last step have the same gradient.
        scaler.scale(summed_loss / num_clips).backward()
        return summed_loss.detach()

    if config.compile:
        lengths = number_of(len(edges), "length")
        say(f"compiling at the first steps of {lengths}: up to a minute for each, unless it was done before")
        loaded.compile()
    if config.cuda_graphs:
        forward_backward = Graphs(forward_backward, model, phase)

    log.start(plan.total_steps, state.step, state.log_bytes)
    stop.defer()  # from here on a signal only sets stop.requested
    if state.evaluation_is_due:  # a stop was requested in the middle of it
        evaluate_and_save()

    for step, batches in steps:  # each optimizer step, and the batches of its micro-batches
        # Steps that were not finite do not count, which only the device knows yet.
        set_learning_rates(optimizer, learning_rate_factor(steps_taken, *schedule))
        step_loss = torch.zeros((), device=device)
        audio_samples = padding_samples = 0

        phase("data wait")
        for number, batch, is_ranks_last in batches:  # no more of them come once a stop is agreed
            audio_samples += batch.num_samples
            padding_samples += batch.padding_samples

            phase("host to device")
            batch = batch.to(device)

            phase("forward")
            seed_everything(config.seed, state.step, number, device)
            with ranks.exchanging(replica, when=is_ranks_last):
                step_loss += forward_backward(batch, step.num_clips)
            phase("data wait")

        if agreed.requested:  # an unfinished step is discarded: --resume begins it again
            save_and_leave()

        phase("clipping")
        scaler.unscale_(optimizer)
        grad_norm = clip_grad_norm_(model.parameters(), config.max_grad_norm or math.inf)
        phase("optimizer")
        clock = time.perf_counter() - last_save if ranks.is_first else 0.0
        sums = ranks.sum(step_loss, audio_samples, padding_samples, stop.requested, clock)
        is_finite = torch.isfinite(sums[0] + grad_norm)
        take_step(optimizer, is_finite)
        steps_taken += is_finite
        scaler.update()
        optimizer.zero_grad()

        state.step += 1
        state.epoch, state.step_in_epoch = step.epoch, step.step_in_epoch + 1
        in_flight.append(
            InFlight(
                step=state.step,
                passes=plan.passes(state.epoch, state.step_in_epoch),
                num_clips=step.num_clips,
                numbers=Readback(torch.cat([sums, torch.stack([grad_norm, steps_taken])])),
            )
        )
        settle(leave=steps_behind(device))

        is_last = state.step == plan.total_steps
        ends_epoch = state.step_in_epoch == plan.steps_per_epoch
        state.evaluation_is_due = is_last or is_due(config.eval_every, state.step, ends_epoch)
        if state.evaluation_is_due:
            evaluate_and_save()
        elif is_due(config.checkpoint_every, state.step, ends_epoch, since_save):
            save()
    if any(ranks.gather(stop.requested)):
        stop.requested = True
    stop.undefer()  # a stop that came in the last evaluation ends the run: --resume does the test
    return state


@dataclass
class Agreed:
    """Whether to stop, of several ranks: each learns it with the numbers of the same step."""

    requested: bool = False


def steps_behind(device: torch.device) -> int:
    """How many steps the log is behind: a GPU computes one while the host reads what came of the last."""
    return 1 if device.type == "cuda" else 0


def is_due(every: int | str | None, step: int, ends_epoch: bool, seconds: float = 0.0) -> bool:
    """Whether what is done every N steps, every "epoch" or by the clock ("10m") is due after this step.

    `seconds` have passed since it was last done. None: never; nor "end", after the last step in any case.
    """
    if every in (None, "end"):
        return False
    if every == "epoch":
        return ends_epoch
    return step % every == 0 if isinstance(every, int) else seconds >= seconds_of(every)


def finish(
    config: TrainConfig,
    loaded: LoadedModel,
    data: RunData,
    device: torch.device,
    run_folder: Path,
    log: RunLog,
    stop: StopSignal,
    state: TrainState,
    ranks: Ranks = ALONE,
) -> None:
    """Score the test set, where there is one: once, with the best weights. Then write the last record.

    Raises NumbersBroke where no evaluation gave a score to choose the best by.
    """
    stop.defer()
    if state.best_step is None:
        raise NumbersBroke(
            "No evaluation had a finite loss: there is no best model. Try a lower --learning-rate."
        )
    log.phase("evaluation")
    if data.test is not None:
        if ranks.is_first:
            loaded.model.load_state_dict(load_file(run_folder / "best" / "model.safetensors"))
        ranks.share(loaded.model.state_dict().values())
        batches = evaluation_batches(config, data, data.test, loaded, device, stop, ranks)
        precision = pick_precision(config.precision, device)
        result = evaluate(loaded.model, batches, device, precision, stop, ranks)
        if result is None:
            raise Stopped(STOPPED_AT_THE_END)
        log.record("test", step=state.best_step, epoch=state.best_epoch, **result.scores)
        if ranks.is_first:
            keep_test_predictions(run_folder, prediction_lines("test", data.test, result))
    log.record(
        "end",
        step=state.step,
        best_step=state.best_step,
        best_metric=config.best_metric,
        best_score=state.best_score,
        wall_seconds=state.wall_seconds,
        reason="max_steps" if config.max_steps else "epochs",
    )
    log.phase(None)
    stop.undefer()


def evaluation_batches(
    config: TrainConfig,
    data: RunData,
    clips: ClipDataset,
    loaded: LoadedModel,
    device: torch.device,
    stop: StopSignal | None = None,
    ranks: Ranks = ALONE,
) -> Iterator[Batch]:
    """Batches of all clips, in their order, which ranks take in turns; they end early at a stop signal."""
    draws = in_batches(list(range(len(clips))), config.eval_batch_size or config.micro_batch_size)
    draws = draws[ranks.rank :: ranks.world_size]
    collate = loaded.collator(lengths_to_pad_to(config, data, clips, loaded, device))
    return load_batches(clips, draws, collate, num_workers=config.num_workers, device=device, stop=stop)


def lengths_to_pad_to(
    config: TrainConfig, data: RunData, clips: ClipDataset, loaded: LoadedModel, device: torch.device
) -> tuple[int, ...]:
    """In samples; none: to a batch's longest clip. Each length costs a compiler a minute, a GPU a little."""
    if config.compile:
        return length_quantiles(data.train.num_samples)
    return length_grid(clips.num_samples) if device.type == "cuda" and loaded.padding_invariant else ()
