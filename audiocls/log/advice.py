"""What to change next where steps could be faster."""

import statistics
from dataclasses import dataclass, field
from typing import Self

from audiocls.config import TrainConfig
from audiocls.log.phases import StepFacts

MUCH = 0.2  # a share of the time that is worth a line
HARDLY = 0.03  # a wait for the GPU as short as this: it had nothing left to do
# The first steps start worker processes and choose kernels; fewer than the fewest tell nothing.
WARM_UP_STEPS, FEWEST_STEPS, MOST_STEPS = 2, 20, 200


@dataclass
class StepShares:
    """Where the time of some steps went that were not slowed by timing them, as shares of it."""

    data_wait: float  # the host waited for a batch
    device_wait: float  # the host waited for the GPU, as it should; in the median step
    padding: float  # of what was computed
    gpu_idle: float | None = None  # no kernel ran; None where that was not measured

    @classmethod
    def of(cls, steps: list[StepFacts], gpu_idle: float | None = None) -> Self:
        totals = [sum(step.seconds.values()) for step in steps]
        padding = sum(step.padding_seconds for step in steps)
        return cls(
            data_wait=sum(step.seconds.get("data wait", 0.0) for step in steps) / sum(totals),
            # The median: a few steps in which something is compiled or set up say nothing of the others.
            device_wait=statistics.median(
                step.seconds.get("device wait", 0.0) / total
                for step, total in zip(steps, totals, strict=True)
                if total
            ),
            padding=padding / (padding + sum(step.audio_seconds for step in steps)),
            gpu_idle=gpu_idle,
        )


def bound_by(shares: StepShares, *, on_gpu: bool) -> str:
    """What steps would have to be faster: "batches", the "host" that launches kernels, or the "device"."""
    waits_for_batches = shares.data_wait > MUCH
    if not on_gpu:
        return "batches" if waits_for_batches else "device"
    if shares.gpu_idle is not None:
        is_idle = shares.gpu_idle > MUCH
    else:
        # A batch that is waited for while the GPU is busy costs nothing: then the GPU is waited for longer.
        is_idle = shares.device_wait < HARDLY or shares.data_wait > max(MUCH, shares.device_wait)
    if not is_idle:
        return "device"
    return "batches" if waits_for_batches else "host"


def next_change(
    shares: StepShares, config: TrainConfig, *, precision: str, on_gpu: bool, can_capture: bool = True
) -> str:
    """One line: what bounds the steps, and what to change for it."""
    bound = bound_by(shares, on_gpu=on_gpu)
    if bound == "batches":
        now = "the default" if config.num_workers is None else config.num_workers
        return f"{shares.data_wait:.0%} of the time no batch is ready: more --num-workers than {now}"
    if bound == "host":
        fixes = ["--cuda-graphs"] if can_capture and not config.cuda_graphs else []
        if config.micro_batch_size < config.clips_per_step:
            same_steps = f"--global-batch-size {config.clips_per_step}"
            fixes.insert(0, f"larger micro-batches (--batch-size auto {same_steps}: the same steps)")
        fix = " or ".join(fixes) or "steps of more clips would hardly take longer"
        most = f" (at most {1 / (1 - idle):.2g} times as fast)" if fixes and (idle := shares.gpu_idle) else ""
        return f"the GPU waits for the host to launch its kernels: {fix}{most}"
    if shares.padding > MUCH and not config.compile:  # which pads to a few lengths, for a reason
        fewer = f"a smaller --batch-size with --global-batch-size {config.clips_per_step}"
        fix = fewer if config.bucket else "leave out --no-bucket"
        return f"{shares.padding:.0%} of what is computed is padding: {fix}"
    if not on_gpu:
        return "nothing simple: the time is the model's own"
    if precision == "fp32":
        return "the GPU is busy, in fp32: --precision bf16 or fp16"
    if not config.compile:
        return "the GPU is busy: --compile, if the run is long"
    return "nothing simple: the GPU is busy"


def beside_steps(seconds: dict[str, float], config: TrainConfig) -> list[str]:
    """Lines on what takes much of the loop's time, `seconds` by phase, without being part of a step."""
    total = sum(seconds.values())
    setting = {
        "evaluation": f"a larger --eval-every than {config.eval_every}",
        "save": "larger intervals of --eval-every and --checkpoint-every",
    }
    parts = {name: seconds.get(name, 0.0) for name in setting}
    much = {name: part for name, part in parts.items() if part > MUCH * total}
    return [
        f"next: {part / total:.0%} of the loop's time is {name}: {setting[name]}"
        for name, part in much.items()
    ]


@dataclass
class SpeedNote:
    """Says once, after the first epoch, what the GPU of a run without `--profile` waits for, if it does."""

    config: TrainConfig
    precision: str
    steps_per_epoch: int
    can_capture: bool = True  # whether --cuda-graphs is possible
    steps: list[StepFacts] = field(default_factory=list)
    steps_seen: int = 0

    def __call__(self, step: StepFacts) -> str | None:
        last = min(max(self.steps_per_epoch, FEWEST_STEPS), MOST_STEPS)
        self.steps_seen += 1
        if WARM_UP_STEPS < self.steps_seen <= last:
            self.steps.append(step)
        if self.steps_seen != last:
            return None
        found = StepShares.of(self.steps)
        if bound_by(found, on_gpu=True) == "device":
            return None
        line = next_change(
            found, self.config, precision=self.precision, on_gpu=True, can_capture=self.can_capture
        )
        return f"note: {line}. --profile shows where the time goes"
