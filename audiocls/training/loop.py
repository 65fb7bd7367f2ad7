"""THE loop: every step from a batch to the best checkpoint, in the order in which it happens."""

import math
import time
from pathlib import Path
from typing import NoReturn

import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_

from audiocls.config import TrainConfig
from audiocls.data.batch_plan import BatchPlan, in_batches
from audiocls.data.loader import ClipDataset, Loader, length_edges, make_loader
from audiocls.data.prepare import RunData
from audiocls.devices import autocast, pick_precision
from audiocls.errors import NumbersBroke, Stopped, UserError
from audiocls.model.loaded import LoadedModel
from audiocls.reporting.profiling import StepFacts
from audiocls.reporting.run_log import RunLog, Window, say
from audiocls.signals import StopSignal
from audiocls.storage import append_text
from audiocls.training.checkpoint import TrainState, export_best, is_every, load_newest, save_checkpoint
from audiocls.training.evaluation import Evaluation, evaluate, is_better, prediction_lines
from audiocls.training.optim import (
    make_optimizer,
    scheduled_learning_rate,
    seed_everything,
    set_learning_rate,
)

MOST_NON_FINITE_IN_A_ROW = 20


def train(
    config: TrainConfig,
    loaded: LoadedModel,
    data: RunData,
    device: torch.device,
    run_folder: Path,
    log: RunLog,
    stop: StopSignal,
) -> TrainState:
    """Train to the end of the plan, from its beginning or, with `config.resume`, from the newest checkpoint.

    Raises Stopped after a signal, with everything up to the last whole optimizer step saved; NumbersBroke
    where the loss or the gradient is not finite again and again.
    """
    model, backbone = loaded.model.to(device).train(), loaded.backbone
    precision = pick_precision(config.precision, device)
    if config.compile:
        loaded.compile()
    optimizer = make_optimizer(model, config.learning_rate, config.weight_decay)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    plan = BatchPlan(
        len(data.train),
        int(config.batch_size),
        config.clips_per_step,
        config.seed,
        config.epochs,
        config.max_steps,
        data.train.num_samples if config.bucket else None,
        round(config.max_batch_seconds * backbone.sampling_rate) if config.max_batch_seconds else None,
    )
    state = load_newest(run_folder, model, optimizer, scaler) if config.resume else TrainState()
    if state.step > plan.total_steps:
        raise UserError(
            f"The run has gone through {state.step} steps, more than {plan.total_steps}: ask for more."
        )
    going_on = f", going on after step {state.step}" if state.step else ""
    say(f"{plan.total_steps} steps, {plan.total_steps / plan.steps_per_epoch:g} epochs{going_on}")
    if state.total_steps not in (None, plan.total_steps):
        say(f"the learning rate's schedule is now over {plan.total_steps} steps, not {state.total_steps}")
    state.total_steps = plan.total_steps
    began = time.perf_counter() - state.wall_seconds
    last_save = time.perf_counter()
    phase = log.phase  # names what the loop is doing, for the bar and --profile

    def save(predictions: str | None = None) -> None:
        nonlocal last_save
        last_save = time.perf_counter()
        state.wall_seconds = last_save - began
        keep = config.save_total_limit
        save_checkpoint(run_folder, loaded, optimizer, scaler, state, keep=keep, predictions=predictions)

    def leave() -> NoReturn:
        """What `next(batches)` does after a signal; an unfinished step or evaluation is discarded."""
        save()
        raise Stopped(f"stopped after step {state.step} of {plan.total_steps}: --resume goes on from there")

    def evaluate_and_save() -> None:
        passes = plan.passes(state.epoch, state.step_in_epoch)
        phase("evaluation")
        result = evaluate(model, eval_batches, device, precision)  # leaves the model training
        is_best = is_better(result.scores, state.best_score, config.best_metric)
        if is_best:
            state.best_score = result.scores[config.best_metric]
            state.best_step, state.best_epoch = state.step, passes
        state.log_bytes = log.evaluation(
            state.step, passes, result.scores, config.best_metric, state.best_score, is_best
        )
        state.evaluation_is_due = False
        phase("save")
        save(predictions=prediction_lines("evaluation", data.evaluation, result) if is_best else None)
        if is_best:
            export_best(run_folder, state.step)

    # torch.compile specialises on the clips' length: then they are padded to a few lengths.
    edges = length_edges(data.train.num_samples) if config.compile else ()
    collate = loaded.training_collator(config.seed, edges)  # draws SpecAugment's masks, too
    workers = config.num_workers
    # The batches of every step to come, which the loop below asks for one by one.
    remaining = plan.micro_batches(state.epoch, state.step_in_epoch)
    batches = iter(make_loader(data.train, remaining, collate, num_workers=workers, device=device, stop=stop))
    eval_batches = evaluation_loader(config, data.evaluation, loaded, device, stop)

    log.start(plan.total_steps, state.step, state.log_bytes)
    stop.defer(leave)  # from here on a signal waits for the next batch, and then leaves
    if state.evaluation_is_due:  # a signal was in the middle of it
        evaluate_and_save()

    for epoch in range(state.epoch, plan.num_epochs):
        for micro_batches in plan.steps(epoch)[state.step_in_epoch :]:  # the last epoch ends with the plan
            num_clips = sum(map(len, micro_batches))
            learning_rate = scheduled_learning_rate(
                state.steps_taken,  # those that were not finite do not count
                plan.total_steps,
                config.warmup_ratio,
                config.learning_rate,
                config.lr_scheduler,
            )
            set_learning_rate(optimizer, learning_rate)
            step_loss = torch.zeros((), device=device)
            audio_samples = padding_samples = 0

            for micro_batch in range(len(micro_batches)):
                phase("data wait")
                batch = next(batches)
                audio_samples += batch.num_samples
                padding_samples += batch.padding_samples

                phase("host to device")
                batch = batch.to(device)

                phase("forward")
                seed_everything(config.seed, state.step, micro_batch, device)
                with autocast(device, precision):
                    logits = model(**batch.inputs)
                # float32: a bf16 cross-entropy loses digits. The sum is divided by the step's true number of
                # clips, so that one large batch, any division of it into micro-batches and an epoch's short
                # last step have the same gradient.
                loss = F.cross_entropy(
                    logits.float(), batch.labels, reduction="sum", label_smoothing=config.label_smoothing
                )
                phase("backward")
                scaler.scale(loss / num_clips).backward()
                step_loss += loss.detach()

            phase("clipping")
            scaler.unscale_(optimizer)
            grad_norm = clip_grad_norm_(model.parameters(), config.max_grad_norm or math.inf)
            phase("device wait")  # the step's only one
            loss_sum, norm = torch.stack([step_loss, grad_norm]).tolist()
            phase("optimizer")
            if math.isfinite(loss_sum) and math.isfinite(norm):
                scaler.step(optimizer)
                state.steps_taken += 1
                state.non_finite_in_a_row = 0
            else:
                state.non_finite_in_a_row += 1
            scaler.update()
            optimizer.zero_grad()

            state.step += 1
            state.step_in_epoch += 1
            audio, padding = audio_samples / backbone.sampling_rate, padding_samples / backbone.sampling_rate
            log.advance(StepFacts(loss_sum, num_clips, audio, padding), state.window, learning_rate)
            phase("logging")
            if state.non_finite_in_a_row == MOST_NON_FINITE_IN_A_ROW:
                raise NumbersBroke(
                    f"{MOST_NON_FINITE_IN_A_ROW} losses or gradients in a row were not finite, up to step "
                    f"{state.step}. Try a lower --learning-rate, or --precision fp32."
                )

            is_last = state.step == plan.total_steps
            if is_last or state.step % config.log_every == 0:
                passes = plan.passes(epoch, state.step_in_epoch)
                state.log_bytes = log.train(state.step, passes, state.window, learning_rate, norm)
                state.window = Window()

            state.evaluation_is_due = is_last or plan.is_due(
                config.eval_every, state.step, state.step_in_epoch
            )
            if state.evaluation_is_due:
                evaluate_and_save()
            elif is_every(config.checkpoint_every, state.step, time.perf_counter() - last_save):
                phase("save")
                save()
        # A checkpoint of its last step says so with step_in_epoch: then nothing of the epoch is left to do.
        state.epoch, state.step_in_epoch = epoch + 1, 0
    return state


def finish(
    config: TrainConfig,
    loaded: LoadedModel,
    data: RunData,
    device: torch.device,
    run_folder: Path,
    log: RunLog,
    stop: StopSignal,
    state: TrainState,
) -> Evaluation | None:
    """Score the test set, where there is one: once, with the best weights. Then write the last record.

    Raises NumbersBroke where no evaluation gave a score to choose the best by.
    """

    def leave() -> NoReturn:
        raise Stopped("stopped after the last step: --resume finishes the run")

    stop.defer(leave)
    if state.best_step is None:
        raise NumbersBroke(
            "No evaluation had a finite loss: there is no best model. Try a lower --learning-rate."
        )
    result = None
    if data.test is not None:
        loaded.model.load_state_dict(load_file(run_folder / "best" / "model.safetensors"))
        batches = evaluation_loader(config, data.test, loaded, device, stop)
        result = evaluate(loaded.model, batches, device, pick_precision(config.precision, device))
        log.record("test", step=state.best_step, epoch=state.best_epoch, **result.scores)
        append_text(run_folder / "predictions.jsonl", prediction_lines("test", data.test, result))
    log.record(
        "end",
        step=state.step,
        best_step=state.best_step,
        best_metric=config.best_metric,
        best_score=state.best_score,
        wall_seconds=state.wall_seconds,
        reason="max_steps" if config.max_steps else "epochs",
    )
    stop.undefer()
    return result


def evaluation_loader(
    config: TrainConfig,
    clips: ClipDataset,
    loaded: LoadedModel,
    device: torch.device,
    stop: StopSignal | None = None,
) -> Loader:
    """The clips in their order."""
    batches = in_batches(list(range(len(clips))), config.eval_batch_size or int(config.batch_size))
    collate = loaded.collator(length_edges(clips.num_samples) if config.compile else ())
    workers = config.num_workers
    return make_loader(clips, batches, collate, num_workers=workers, device=device, stop=stop)
