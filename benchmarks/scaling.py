"""What a step takes on several GPUs, predicted from what one GPU took: a table in Markdown.

Nothing of this was measured on several GPUs. Measured are kernels, the host's time and memory of one H200
(results/nvidia-h200); how uneven ranks are is computed with a run's own plan. Published are the network's
figures, see Network. All weights are trained, in bf16, not compiled.
"""

import argparse
import json
import math
import statistics
from dataclasses import dataclass
from typing import Any

import numpy as np
from common import HERE, SAMPLING_RATE, clip_lengths

from audiocls.data.batch_plan import BatchPlan
from audiocls.log.flops import training_flops
from audiocls.model.settings import EncoderConfig

RESULTS = HERE / "results" / "nvidia-h200"
BASE = EncoderConfig()  # wav2vec2-base's sizes are transformers' defaults
XLS_R: dict[str, Any] = {"num_attention_heads": 16, "feat_extract_norm": "layer", "conv_bias": True}
XLS_R["do_stable_layer_norm"] = True
XLS_R_300M = EncoderConfig(hidden_size=1024, num_hidden_layers=24, intermediate_size=4096, **XLS_R)
XLS_R_1B = EncoderConfig(hidden_size=1280, num_hidden_layers=48, intermediate_size=5120, **XLS_R)
BUCKET_BYTES = 25 * 2**20  # DistributedDataParallel's default
BACKWARD_SHARE = 2 / 3  # of a micro-batch's time: a backward pass costs two forward passes


@dataclass(frozen=True)
class Network:
    """How fast GPUs sum a tensor: bus bandwidth as nccl-tests define it, and what any sum takes."""

    node_gb_s: float = 370.0  # H100, NVLink, a ring: github.com/NVIDIA/nccl-tests/issues/212
    # 16 H20 in two nodes, InfiniBand: github.com/NVIDIA/nccl/issues/1244. Eight 400 Gb/s cards a node give at
    # most 8 x 46 to 48, see nccl-tests/issues/290.
    nodes_gb_s: float = 343.0
    # 33.5 MB in 0.195 ms: github.com/kvcache-ai/Mooncake/pull/3484, which names no card
    node_ms: float = 0.04
    # For each doubling of nodes, as in a tree, which is assumed: 33.5 MB in 0.298 ms on two, nccl#1244
    doubling_ms: float = 0.075
    gpus_per_node: int = 8

    def milliseconds(self, num_bytes: float, gpus: int, num_sums: int = 1) -> float:
        if gpus == 1:
            return 0.0
        doublings = math.log2(math.ceil(gpus / self.gpus_per_node))
        gb_s = min(self.node_gb_s, self.nodes_gb_s) if doublings else self.node_gb_s
        latency = num_sums * (self.node_ms + self.doubling_ms * doublings)
        return latency + ring_bytes(num_bytes, gpus) / gb_s / 1e6


NETWORK = Network()


def ring_bytes(num_bytes: float, gpus: int) -> float:
    """What each GPU sends for a sum over all: each part of the tensor goes around the ring twice."""
    return 2 * (gpus - 1) / gpus * num_bytes


@dataclass(frozen=True)
class Card:
    """What one GPU takes for an encoder."""

    config: EncoderConfig
    parameters: int
    host_ms: float  # to ask for a micro-batch's kernels, whatever is in it
    optimizer_ms: float  # to ask for those of an optimizer step
    fixed_ms: float  # kernels of an empty micro-batch
    ms_per_tflop: float  # kernels
    activation_gib: float  # for a second of audio

    def kernels_ms(self, clips: int, samples: int) -> float:
        return self.fixed_ms + self.ms_per_tflop * clips * training_flops(self.config, samples) / 1e12

    def gib(self, seconds: float, gpus: int) -> float:
        """In float32 weights, gradients, two moments and, of several, DDP's buckets; and what is kept."""
        return (16 if gpus == 1 else 20) * self.parameters / 2**30 + self.activation_gib * seconds


def count(config: EncoderConfig) -> int:
    """Its parameters, with a head for two labels."""
    import torch

    from audiocls.model.encoder import SpeechClassifier

    with torch.device("meta"):
        return sum(parameter.numel() for parameter in SpeechClassifier(config, 2).parameters())


def measured(file: str, **wanted: Any) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (RESULTS / file).read_text().splitlines()]
    return [line for line in lines if wanted.items() <= line.items()]


def base_card() -> Card:
    """wav2vec2-base as it was measured."""
    steps = measured("after.jsonl", section="step eager")
    # Where the kernels take less than half of a step, the host never waits for them.
    by_host = [step["host_ms"] for step in steps if 2 * step["busy_ms"] < step["ms"]]
    tflops = [step["clips"] * training_flops(BASE, step["samples"]) / 1e12 for step in steps]
    ms_per_tflop, fixed_ms = np.polyfit(tflops, [step["busy_ms"] for step in steps], 1).tolist()
    largest = max(steps, key=lambda step: step["clips"] * step["samples"])
    seconds = largest["clips"] * largest["samples"] / SAMPLING_RATE
    return Card(
        config=BASE,
        parameters=count(BASE),
        host_ms=statistics.median(forward + backward for forward, backward, _ in by_host),
        optimizer_ms=statistics.median(optimizer for *_, optimizer in by_host),
        fixed_ms=fixed_ms,
        ms_per_tflop=ms_per_tflop,
        activation_gib=(largest["GiB"] - 16 * count(BASE) / 2**30) / seconds,
    )


def large_card(base: Card) -> Card:
    """XLS-R-1B, extrapolated: by layers from base, by operations from one measured step of XLS-R-300M."""
    step = measured("operators.jsonl", section="memory", model="wav2vec2-xls-r-300m", recomputes=False)[0]
    clips, seconds = 32, 10.0  # of that step, see gpu/bench.py
    tflop = clips * training_flops(XLS_R_300M, seconds * SAMPLING_RATE) / 1e12
    layers = XLS_R_1B.num_hidden_layers / BASE.num_hidden_layers
    # What is kept for the backward pass grows with layers and hidden size.
    size = (XLS_R_1B.num_hidden_layers * XLS_R_1B.hidden_size) / (24 * 1024)
    return Card(
        config=XLS_R_1B,
        parameters=count(XLS_R_1B),
        host_ms=base.host_ms * layers,
        optimizer_ms=base.optimizer_ms * layers,
        fixed_ms=base.fixed_ms * layers,
        ms_per_tflop=(step["ms"] - base.fixed_ms * layers / 2) / tflop,
        activation_gib=size * (step["GiB"] - 16 * count(XLS_R_300M) / 2**30) / (clips * seconds),
    )


@dataclass(frozen=True)
class Predicted:
    """A step, on average."""

    gpus: int
    batch_size: int
    parts: dict[str, float]  # milliseconds, by what they go on
    audio_seconds: float

    @property
    def ms(self) -> float:
        return sum(self.parts.values())

    def bound(self, alone: "Predicted") -> str:
        """What most of the time goes on; below 90% of linear, what takes most beyond its share of one GPU."""
        is_linear = alone.ms / self.ms > 0.9 * self.gpus
        share = 0.0 if is_linear else 1 / self.gpus
        return max(self.parts, key=lambda part: self.parts[part] - share * alone.parts[part])


def predict(
    card: Card,
    lengths: np.ndarray,
    clips_per_step: int,
    batch_size: int,
    gpus: int,
    network: Network = NETWORK,
) -> Predicted:
    """The steps of a pass over clips of these `lengths`, int64 [clips], in samples."""
    plan = BatchPlan(len(lengths), batch_size, clips_per_step, seed=0, epochs=1, lengths=lengths)
    steps = list(plan.steps_from(0, 0))
    buckets = math.ceil(4 * card.parameters / BUCKET_BYTES)
    exchange_ms = network.milliseconds(4 * card.parameters, gpus, buckets)
    parts = {"compute": 0.0, "host": 0.0, "uneven ranks": 0.0, "network": 0.0}
    for step in steps:
        samples = [step.padded_samples(number, lengths) for number in range(len(step.micro_batches))]
        clips = [len(draws) for draws in step.micro_batches]
        kernels = [card.kernels_ms(n, total // n) for n, total in zip(clips, samples, strict=True)]
        times = [max(card.host_ms, ms) for ms in kernels]
        dealt = step.dealt(gpus, lengths)
        by_rank = [sum(times[number] for number in numbers) for numbers in dealt]
        last = times[dealt[int(np.argmax(by_rank))][-1]]
        # Gradients are exchanged during the last backward pass, at whose end the last bucket is full.
        exposed = max(exchange_ms - BACKWARD_SHARE * last, exchange_ms / buckets)
        parts["compute"] += sum(kernels) / gpus
        parts["host"] += (sum(by_rank) - sum(kernels)) / gpus + card.optimizer_ms
        parts["uneven ranks"] += max(by_rank) - sum(by_rank) / gpus
        # Two more sums are of a few numbers: which parameters were used, and the loss with what goes with it.
        parts["network"] += exposed + network.milliseconds(0, gpus, num_sums=2)
    each = {part: ms / len(steps) for part, ms in parts.items()}
    return Predicted(gpus, batch_size, each, lengths.sum() / SAMPLING_RATE / len(steps))


def best(
    card: Card, lengths: np.ndarray, clips_per_step: int, gpus: int, network: Network, room_gib: float
) -> Predicted:
    """With the best --batch-size: a rank's share of a step, a half of it, a quarter..., where that fits."""
    sizes = [math.ceil(clips_per_step / gpus / 2**halvings) for halvings in range(8)]
    longest = int(lengths.max()) / SAMPLING_RATE
    fitting = [size for size in dict.fromkeys(sizes) if card.gib(size * longest, gpus) <= room_gib]
    steps = (predict(card, lengths, clips_per_step, size, gpus, network) for size in fitting)
    return min(steps, key=lambda step: step.ms)


def check(base: Card) -> None:
    """What the pieces make of steps that were measured whole."""
    print("\nmeasured on one GPU, and what the pieces make of it:")
    for step in measured("after.jsonl", section="step eager"):
        ms = max(base.host_ms, base.kernels_ms(step["clips"], step["samples"])) + base.optimizer_ms
        print(f"  {step['clips']} x {step['samples'] / SAMPLING_RATE:g} s: {step['ms']:.0f} ms; {ms:.0f} ms")
    sides = json.loads(RESULTS.with_suffix(".json").read_text())["sides"]
    rate = next(side["clips/s"] for side in sides if side["side"] == "ours")
    guide = predict(base, np.full(128, SAMPLING_RATE), 128, 32, 1)
    print(f"  32 x 1 s four times, a step of a run: {128 / rate * 1000:.0f} ms; {guide.ms:.0f} ms")


def published(base: Card) -> None:
    """NVIDIA's wav2vec 2.0 base on A100, fine-tuned in bf16, beside this model fed with its pieces.

    github.com/NVIDIA/DeepLearningExamples, PyTorch/SpeechRecognition/wav2vec2/README.md. A batch is 3.2
    million samples; a step is eight: one GPU takes them as one, each of four takes two as one.
    """
    step_seconds = 8 * 3_200_000 / SAMPLING_RATE
    tokens_per_second = {1: 41_275.76, 4: 132_361.62, 8: 207_200.91}  # of 20 ms
    step_ms = {gpus: step_seconds * 50 / rate * 1000 for gpus, rate in tokens_per_second.items()}
    network = Network(node_gb_s=230.0)  # docs.alayanew.com/en/docs/tech-blog/2026-05-06-nccl-tests
    print("\npublished for A100, and predicted from one GPU with equal ranks and nothing overlapped:")
    for gpus, ms in step_ms.items():
        exchange_ms = network.milliseconds(4 * base.parameters, gpus, 15)
        predicted = max(base.host_ms, step_ms[1] / gpus) + exchange_ms
        print(
            f"  {gpus}: {ms:.0f} ms, {step_ms[1] / ms:.2f}; {predicted:.0f} ms, {step_ms[1] / predicted:.2f}"
        )
    slope = (step_ms[4] - step_ms[8]) / (1 / 4 - 1 / 8)
    constant = step_ms[8] - slope / 8
    print(f"  4 and 8 lie on {constant:.0f} ms + {slope:.0f} ms / GPUs: {constant + slope:.0f} ms for one")


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    made.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64])
    made.add_argument("--clips-per-step", type=int, nargs="+", default=[128, 1024, 4096])
    made.add_argument("--batch-size", type=int, help="of several GPUs; without, and of one, the best")
    made.add_argument("--gib", type=float, default=120.0, help="room on a GPU")
    made.add_argument("--node-gb-s", type=float, default=NETWORK.node_gb_s, help="bus bandwidth in a node")
    made.add_argument("--nodes-gb-s", type=float, default=NETWORK.nodes_gb_s, help="between nodes")
    args = made.parse_args()
    network = Network(args.node_gb_s, args.nodes_gb_s)
    base = base_card()
    heads = "model | clips | a step | GPUs | `--batch-size` | ms a step | audio s/s | speed-up | of linear "
    heads += "| sends, MB | GiB | bound by"
    print(f"| {heads} |\n|{'---|' * 12}")
    for name, card in {"wav2vec2-base": base, "XLS-R-1B": large_card(base)}.items():
        for longest in (1, 10):
            spread = clip_lengths(2 * max(args.clips_per_step), 1, longest)
            lengths = np.round(np.array(spread) * SAMPLING_RATE).astype(int)
            for clips in args.clips_per_step:
                alone = best(card, lengths, clips, 1, network, args.gib)
                for gpus in args.gpus:
                    if gpus == 1 or not args.batch_size:
                        step = best(card, lengths, clips, gpus, network, args.gib)
                    else:
                        step = predict(card, lengths, clips, args.batch_size, gpus, network)
                    row = [name, "1 s" if longest == 1 else "1 to 10 s", f"{clips:,}", gpus, step.batch_size]
                    row += [f"{step.ms:,.0f}", f"{step.audio_seconds / step.ms * 1000:,.0f}"]
                    row += [f"{alone.ms / step.ms:.1f}", f"{alone.ms / step.ms / gpus:.0%}"]
                    row += [f"{ring_bytes(4 * card.parameters, gpus) / 1e6:,.0f}"]
                    row += [f"{card.gib(step.batch_size * longest, gpus):.0f}", step.bound(alone)]
                    print(f"| {' | '.join(map(str, row))} |", flush=True)
    check(base)
    published(base)


if __name__ == "__main__":
    main()
