"""What each of audiocls/model/kernels.py gives by itself, in a training step of wav2vec2-base on the CPU.

"theirs" is the same step with torch's own way in the place of that one. All take turns in one process, but
for the allocator's setting, which a process keeps: for that, processes take turns.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from unittest import mock

from common import BASE, SAMPLING_RATE, SMALL, Row, interleaved, parser, report

SIZES = ((16, 1.0), (6, 6.0))  # clips, seconds
KEPT, GIVEN_BACK = "kept", "given back"


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--memory", choices=(KEPT, GIVEN_BACK), help="only print the seconds of a step so")
    args = arguments.parse_args()
    rounds, config = (2, SMALL) if args.quick else (7, BASE)
    if args.memory:
        from audiocls.devices import keep_freed_memory

        if args.memory == KEPT:
            keep_freed_memory()
        step = make_step(config, *SIZES[1])
        print(min(step() for _ in range(4)))
        return
    rows = []
    for clips, seconds in SIZES:
        rows += kernel_rows(make_step(config, clips, seconds), f"{clips} x {seconds:g} s", rounds)
    rows.append(whisper_row(rounds))
    quick = ["--quick"] * args.quick

    def in_a_process(memory: str) -> float:
        command = [sys.executable, __file__, "--memory", memory, *quick]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    ways = {memory: lambda memory=memory: in_a_process(memory) for memory in (KEPT, GIVEN_BACK)}
    memory = interleaved(ways, rounds=min(rounds, 3), warm_up=0)
    rows.append(Row(f"kept memory, {SIZES[1][0]} x {SIZES[1][1]:g} s", "s", memory[KEPT], memory[GIVEN_BACK]))
    settings = {"model": "small" if args.quick else "wav2vec2-base, random weights", "rounds": rounds}
    report(args, settings, rows)


def make_step(config: dict, clips: int, seconds: float) -> Callable[[], float]:
    """A training step on clips of 80 to 100% of `seconds`, which returns the seconds that it took."""
    import torch

    from audiocls.model.encoder import SpeechClassifier
    from audiocls.model.settings import EncoderConfig
    from audiocls.training.loss import loss_sum
    from audiocls.training.optim import make_optimizer

    torch.manual_seed(0)
    settings = EncoderConfig.read({"model_type": "wav2vec2"} | config)
    assert settings is not None
    model = SpeechClassifier(settings, 14).train()
    optimizer = make_optimizer(model, 1e-5, 0.0)
    samples = round(seconds * SAMPLING_RATE)
    input_values, labels = torch.randn(clips, samples), torch.arange(clips) % 14
    lengths = torch.linspace(0.8 * samples, samples, clips).long()

    def step() -> float:
        began = time.perf_counter()
        loss_sum(model(input_values, lengths), labels, 0.0).backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - began

    return step


def kernel_rows(step: Callable[[], float], name: str, rounds: int) -> list[Row]:
    from torch import Tensor
    from torch.nn import functional as F

    def module(inputs: Tensor, layer: Callable[[Tensor], Tensor]) -> Tensor:
        return layer(inputs)

    torchs: dict[str, Callable] = {
        "linear": module,
        "dropout": F.dropout,
        "attention": F.scaled_dot_product_attention,
        "long_convolution": module,
    }

    def without(*kernels: str) -> float:
        with torchs_own({kernel: torchs[kernel] for kernel in kernels}):
            return step()

    ways = {kernel: lambda kernel=kernel: without(kernel) for kernel in torchs}
    seconds = interleaved({"all": step, **ways, "none": lambda: without(*torchs)}, rounds=rounds)
    rows = [Row(f"{kernel}, {name}", "s", seconds["all"], seconds[kernel]) for kernel in torchs]
    return [*rows, Row(f"all of these, {name}", "s", seconds["all"], seconds["none"])]


def whisper_row(rounds: int) -> Row:
    """A step of transformers' own Whisper, of the shape of its tiny encoder, on 16 clips of 1 s."""
    import torch

    from audiocls.model import stock
    from audiocls.training.loss import loss_sum

    transformers = stock.import_transformers()
    config = transformers.WhisperConfig(
        d_model=384,
        encoder_layers=4,
        encoder_attention_heads=6,
        encoder_ffn_dim=1536,
        decoder_layers=1,
        decoder_attention_heads=6,
        max_source_positions=50,
        num_labels=14,
    )
    model = stock.StockModel(transformers.WhisperForAudioClassification(config)).train()
    input_features, labels = torch.randn(16, 80, 100), torch.arange(16) % 14

    def step() -> float:
        began = time.perf_counter()
        loss_sum(model(input_features=input_features), labels, 0.0).backward()
        model.zero_grad()
        return time.perf_counter() - began

    def torchs_step() -> float:
        with mock.patch.object(stock, "OneDNNMode", nullcontext):
            return step()

    seconds = interleaved({"oneDNN": step, "torch's": torchs_step}, rounds=rounds)
    return Row("linear in Whisper, 16 x 1 s", "s", seconds["oneDNN"], seconds["torch's"])


@contextmanager
def torchs_own(ways: dict[str, Callable]) -> Iterator[None]:
    """Put torch's own way wherever a kernel is called by its name."""
    from audiocls.model import encoder, kernels

    with ExitStack() as stack:
        for module in (encoder, kernels):
            for kernel, way in ways.items():
                stack.enter_context(mock.patch.object(module, kernel, way))
        yield


if __name__ == "__main__":
    main()
