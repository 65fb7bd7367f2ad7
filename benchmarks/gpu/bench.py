"""What a micro-batch of wav2vec2-base costs on a GPU, part by part, and what other ways would cost.

Prints a line a result and writes the same as JSON lines; each section stands alone, and none begins after the
time limit. `bench.py --device cpu` shows that it runs.
"""

# ruff: noqa: E402 - the paths of what is imported are set before

import argparse
import itertools
import os
import statistics
import sys
import time
import warnings
from functools import partial
from operator import getitem
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path.cwd()), str(Path(__file__).parents[1])]

import numpy as np
import torch
from common import LABELS
from measure import Bench, open_log
from operators import attention, positional, strided
from torch import Tensor

from audiocls.data.collators import Batch, Example
from audiocls.data.loader import ClipDataset, load_batches
from audiocls.devices import autocast, pick_device, synchronize
from audiocls.log.flops import training_flops
from audiocls.log.phases import Phases
from audiocls.log.profiling import matmul_flops_per_second
from audiocls.log.trace import part_times
from audiocls.model.backbone import LoadedModel
from audiocls.model.encoder import SpeechClassifier
from audiocls.model.loading import load_for_training, open_backbone
from audiocls.model.settings import EncoderConfig
from audiocls.model.stock import StockModel
from audiocls.training.graphs import Graphs
from audiocls.training.loss import loss_sum
from audiocls.training.optim import make_optimizer

SIZES = ((8, 32_000, True), (32, 16_000, False), (32, 16_000, True), (128, 16_000, False), (32, 80_000, True))
COMPILED_SIZES = ((128, 16_000, True), (32, 80_000, True))
SMALL_SIZES = ((2, 4_000, True),)


def ceilings(bench: Bench) -> None:
    """What the card can do at best."""
    bench.peak = matmul_flops_per_second(bench.device, torch.bfloat16)
    source = torch.empty(2**28 if bench.on_gpu else 2**20, device=bench.device)
    target = torch.empty_like(source)
    milliseconds = bench.milliseconds(lambda: target.copy_(source))
    about: dict[str, Any] = {"torch": torch.__version__}
    if bench.on_gpu:
        about |= {"cudnn": torch.backends.cudnn.version(), "gpu": torch.cuda.get_device_name()}
        about["GiB"] = torch.cuda.mem_get_info()[1] / 2**30
    copied = 2 * source.nbytes / milliseconds / 1e9
    bench.say("ceilings", bf16_tflops=bench.peak / 1e12, copy_tb_s=copied, **about)


def made_model(bench: Bench) -> LoadedModel:
    loaded = load_for_training(open_backbone(bench.model), LABELS, seed=0)
    loaded.model.to(bench.device).train()
    return loaded


def made_batch(bench: Bench, loaded: LoadedModel, clips: int, samples: int, ragged: bool = False) -> Batch:
    generator = np.random.default_rng(0)
    lengths = np.linspace(0.8 * samples, samples, clips).astype(int) if ragged else [samples] * clips
    noise = [generator.standard_normal(length).astype(np.float32) for length in lengths]
    examples = [Example(waveform, 0, number) for number, waveform in enumerate(noise)]
    return loaded.training_collator(0)(examples).to(bench.device)


def loss_of(bench: Bench, model: Any, batch: Batch) -> Tensor:
    with autocast(bench.device, "bf16"):
        logits = model(**batch.inputs)
    return loss_sum(logits, batch.labels, 0.0) / len(batch.labels)


def one_step(
    bench: Bench, loaded: LoadedModel, batch: Batch, name: str, *, as_graph: bool = False, **about: Any
) -> None:
    """A micro-batch that is a whole step: time, share of the peak, the host's time, memory, kernels."""
    model, config = loaded.model, loaded.backbone.config
    optimizer = make_optimizer(model, 3e-5, 0.0)
    host: list[float] = []
    times: list[float] = []

    def forward_backward(batch: Batch, num_clips: int) -> Tensor:
        loss = loss_of(bench, model, batch)
        times.append(time.perf_counter())
        loss.backward()
        return loss.detach()

    run = Graphs(forward_backward, model, Phases()) if as_graph else forward_backward

    def step() -> None:
        times[:] = [time.perf_counter()]
        run(batch, len(batch.labels))
        times.append(time.perf_counter())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter())
        host[:] = [round(1000 * (after - before), 2) for before, after in itertools.pairwise(times)]

    began = time.perf_counter()
    step()
    synchronize(bench.device)
    first = time.perf_counter() - began
    if bench.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    milliseconds = bench.milliseconds(step)
    clips, rate = len(batch.labels), loaded.backbone.sampling_rate
    flops = clips * training_flops(config, batch.num_samples / clips)
    figures: dict[str, Any] = {"clips": clips, "samples": batch.inputs["input_values"].shape[1]}
    figures |= about | {"ms": milliseconds, "first_s": first, "host_ms": list(host)}
    figures |= {"audio_s_per_s": batch.num_samples / rate / milliseconds * 1000}
    figures |= {"share_of_peak": flops / milliseconds * 1000 / bench.peak}
    if bench.on_gpu:
        figures["GiB"] = torch.cuda.max_memory_allocated() / 2**30
        counts, busy = bench.kernels(step)
        figures |= {"kernels": sum(counts.values()), "busy_ms": sum(busy.values()) / 1000}
        most = [f"{kernel[:60]} x{counts[kernel]} {us / 1000:.2f}ms" for kernel, us in busy.most_common(40)]
        figures["most"] = most
    bench.say(f"step {name}", **figures)


def parts(bench: Bench) -> None:
    """Milliseconds of each part of the model, forward and backward: kernels' on a GPU."""
    loaded = made_model(bench)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if bench.on_gpu:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    for clips, samples, ragged in SIZES[1:3] if bench.on_gpu else SMALL_SIZES:
        batch = made_batch(bench, loaded, clips, samples, ragged)
        loss_of(bench, loaded.model, batch).backward()
        with torch.profiler.profile(activities=activities, acc_events=True) as profile:
            with torch.profiler.record_function("forward"):
                loss = loss_of(bench, loaded.model, batch)
            loss.backward()
            synchronize(bench.device)
        found = part_times(profile.events() or [], on_gpu=bench.on_gpu)
        both = {
            name: (1000 * part.forward_seconds, 1000 * part.backward_seconds) for name, part in found.items()
        }
        rounded = {name: [round(ms, 3) for ms in pair] for name, pair in both.items()}
        bench.say("parts", clips=clips, samples=samples, padded=ragged, **rounded)


def eager(bench: Bench) -> None:
    loaded = made_model(bench)
    for clips, samples, ragged in SIZES if bench.on_gpu else SMALL_SIZES:
        one_step(bench, loaded, made_batch(bench, loaded, clips, samples, ragged), "eager", padded=ragged)


def compiled(bench: Bench) -> None:
    """As --compile has it: in a few pieces; and each micro-batch as a CUDA graph."""
    backend = os.environ.get("BENCH_BACKEND")  # to try this section where inductor takes too long
    if not bench.on_gpu and not backend:
        return
    torch._dynamo.reset()
    loaded = made_model(bench)
    if backend:
        for piece in loaded.model.pieces():
            piece.compile(backend=backend, fullgraph=True, dynamic=False)
    else:
        loaded.compile()
    for clips, samples, ragged in COMPILED_SIZES if bench.on_gpu else SMALL_SIZES:
        if bench.is_over:
            return
        with bench.failing("step compiled", clips=clips, padded=ragged):
            batch = made_batch(bench, loaded, clips, samples, ragged)
            one_step(bench, loaded, batch, "compiled", padded=ragged)
            one_step(bench, loaded, batch, "compiled, a graph", padded=ragged, as_graph=True)
    counters = torch._dynamo.utils.counters
    breaks, graphs = sum(counters["graph_break"].values()), counters["stats"]["unique_graphs"]
    bench.say("compile", graph_breaks=breaks, graphs=graphs)
    counters.clear()


def graphed(bench: Bench) -> None:
    """Each micro-batch as a CUDA graph, without compiling."""
    if not bench.on_gpu:
        return
    loaded = made_model(bench)
    for clips, samples, ragged in SIZES:
        with bench.failing("step eager, a graph", clips=clips, padded=ragged):
            batch = made_batch(bench, loaded, clips, samples, ragged)
            one_step(bench, loaded, batch, "eager, a graph", padded=ragged, as_graph=True)


def recomputed(bench: Bench) -> None:
    """What large models take with and without --activation-checkpointing: 32 clips of 10 s."""
    from transformers import Wav2Vec2Config, WhisperConfig, WhisperForAudioClassification

    clips, samples = (32, 160_000) if bench.on_gpu else (1, 4_000)
    small: dict[str, Any] = {} if bench.on_gpu else {"num_hidden_layers": 2, "encoder_layers": 2}
    for name in ("wav2vec2-xls-r-300m", "whisper-medium"):
        for recomputes in (False, True):
            with bench.failing("memory", model=name, recomputes=recomputes):
                if name == "whisper-medium":
                    sizes = {"d_model": 1024, "encoder_layers": 24, "encoder_attention_heads": 16}
                    sizes |= {"encoder_ffn_dim": 4096, "max_source_positions": 500, "decoder_layers": 1}
                    model: Any = StockModel(WhisperForAudioClassification(WhisperConfig(**sizes | small)))
                    inputs = {"input_features": torch.randn(clips, 80, 1_000, device=bench.device)}
                else:
                    sizes = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
                    sizes |= {"intermediate_size": 4096, "do_stable_layer_norm": True, "conv_bias": True}
                    values = Wav2Vec2Config(**sizes | small, feat_extract_norm="layer").to_dict()
                    config = EncoderConfig.read(values)
                    assert config is not None
                    model = SpeechClassifier(config, 14)
                    lengths = torch.full((clips,), samples, device=bench.device)
                    inputs = {"input_values": torch.randn(clips, samples, device=bench.device)}
                    inputs["lengths"] = lengths - 1
                model.to(bench.device).train()
                if recomputes:
                    model.recompute_activations()
                optimizer = make_optimizer(model, 3e-5, 0.0)
                if bench.on_gpu:
                    torch.cuda.empty_cache()
                    torch.cuda.reset_peak_memory_stats()

                def step(model: Any = model, inputs: Any = inputs, optimizer: Any = optimizer) -> None:
                    with autocast(bench.device, "bf16"):
                        loss = model(**inputs).float().square().mean()
                    loss.backward()
                    optimizer.step()
                    optimizer.zero_grad()

                milliseconds = bench.milliseconds(step, most=3)
                gib = torch.cuda.max_memory_allocated() / 2**30 if bench.on_gpu else 0.0
                bench.say("memory", model=name, recomputes=recomputes, GiB=gib, ms=milliseconds)
                del model, optimizer


def waits(bench: Bench) -> None:
    """Where the host waits for the device in a micro-batch: nowhere, is encoder.py's claim."""
    if not bench.on_gpu:
        return
    loaded = made_model(bench)
    for ragged in (False, True):
        for training in (True, False):
            loaded.model.train(training)
            batch = made_batch(bench, loaded, 4, 16_000, ragged)
            for _ in range(2):  # the first may build plans
                with warnings.catch_warnings(record=True) as found:
                    warnings.simplefilter("always")
                    torch.cuda.set_sync_debug_mode("warn")
                    try:
                        with torch.set_grad_enabled(training):
                            loss = loss_of(bench, loaded.model, batch)
                        if training:
                            loss.backward()
                            torch.nn.utils.clip_grad_norm_(loaded.model.parameters(), 1.0)
                    finally:
                        torch.cuda.set_sync_debug_mode("default")
            where = sorted({f"{Path(w.filename).name}:{w.lineno}" for w in found if "sync" in str(w.message)})
            bench.say("waits", padded=ragged, training=training, count=len(where), where=where)


def new_lengths(bench: Bench) -> None:
    """Micro-batches of ever new lengths, as sorted clips give them: the first time, and again."""
    loaded = made_model(bench)
    clips = 32 if bench.on_gpu else 2

    def milliseconds(lengths: list[int], training: bool) -> float:
        times = []
        loaded.model.train(training)
        for samples in lengths:
            batch = made_batch(bench, loaded, clips, samples, True)
            synchronize(bench.device)
            began = time.perf_counter()
            with torch.set_grad_enabled(training):
                loss = loss_of(bench, loaded.model, batch)
            if training:
                loss.backward()
            synchronize(bench.device)
            times.append(1000 * (time.perf_counter() - began))
        loaded.model.zero_grad()
        return statistics.median(times)

    for cudnn, base in ((False, 60_017), (True, 40_011)) if bench.on_gpu else ((False, 4_001),):
        if bench.on_gpu:
            torch.backends.cuda.enable_cudnn_sdp(cudnn)
        lengths = [base + 977 * number for number in range(10 if bench.on_gpu else 2)]
        for training in (True, False):
            new, again = milliseconds(lengths, training), milliseconds(lengths, training)
            about = {"cudnn_attention": cudnn, "training": training}
            bench.say("new lengths", **about, new_ms=new, again_ms=again)
    if bench.on_gpu:
        torch.backends.cuda.enable_cudnn_sdp(False)


class Noise:
    """As Waveforms are to ClipDataset."""

    def __init__(self, samples: int) -> None:
        noise = np.random.default_rng(0).standard_normal((64, samples)).astype(np.float32)
        self.store = partial(getitem, noise)

    def place(self, row: int) -> int:
        return row % 64


def feeding(bench: Bench) -> None:
    """Audio seconds a second that the loop's loader gives, by workers."""
    loaded = made_model(bench)
    for samples in (16_000, 80_000):
        for workers in (1, 2, 4, 8) if bench.on_gpu else (0, 1):
            count = 128 if bench.on_gpu else 4
            data = ClipDataset(Noise(samples), np.arange(32 * count), np.zeros(32 * count, int))
            batches = [list(range(32 * number, 32 * number + 32)) for number in range(count)]
            collate = loaded.training_collator(0)
            loader = load_batches(data, batches, collate, num_workers=workers, device=bench.device)
            times = []
            for batch in loader:
                pinned = batch.labels.is_pinned() if bench.on_gpu else False
                batch.to(bench.device)
                times.append(time.perf_counter())
            half = len(times) // 2
            rate = 32 * samples / 16_000 * (len(times) - 1 - half) / (times[-1] - times[half])
            about = {"seconds": samples / 16_000, "workers": workers, "pinned": pinned}
            bench.say("feeding", **about, audio_s_per_s=rate)


SECTIONS = (
    *(ceilings, waits, eager, graphed, compiled, parts, recomputed, feeding),
    *(positional, strided, attention, new_lengths),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--model", required=True, help="a saved backbone")
    parser.add_argument("--out", required=True, help="JSON lines are added to this file")
    parser.add_argument("--seconds", type=float, default=150, help="no section begins after so long")
    parser.add_argument("--small", action="store_true", help="sizes are small wherever there is no GPU")
    parser.add_argument("--only", default="", help="sections, by comma")
    args = parser.parse_args()
    with open_log(args.out) as log:
        bench = Bench(pick_device(args.device), args.model, log, args.seconds)
        for section in SECTIONS:
            name = section.__name__
            if args.only and name not in args.only.split(",") and section is not ceilings:
                continue
            if bench.is_over:
                bench.say(name, skipped="no time left")
                continue
            with bench.failing(name):
                section(bench)
            if bench.on_gpu:
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
