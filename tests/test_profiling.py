"""--profile: ranges that match the loop, figures that add up; operations counted as torch counts them."""

import gzip
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import Lab, Run
from torch.autograd import DeviceType
from torch.utils.flop_counter import FlopCounterMode
from transformers import Wav2Vec2Config, Wav2Vec2ForSequenceClassification

from audiocls.config import TrainConfig
from audiocls.log.flops import forward_flops, training_flops, training_flops_by_part
from audiocls.log.phases import STEP, Phases, StepFacts, shares
from audiocls.log.profile_table import as_table, lines_of_parts
from audiocls.log.profiling import COMPILING, FREE, TIMED, TRACED, StepProfiler
from audiocls.log.trace import DeviceWork, Part, device_work, part_times


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"hidden_size": 96, "num_attention_heads": 4, "num_hidden_layers": 2}
        | {"conv_dim": (64,) * 7, "classifier_proj_size": 8},
    ],
    ids=["base", "small"],
)
def test_a_forward_pass_costs_what_torch_counts(settings: dict[str, Any]) -> None:
    config = Wav2Vec2Config(**settings, num_labels=4, attn_implementation="eager")
    with torch.device("meta"):
        model: Any = Wav2Vec2ForSequenceClassification(config).eval()
        input_values = torch.zeros(1, 16_000)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_values)
    counted = sum(forward_flops(config, 16_000).values())
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.01)  # we leave out the head
    if not settings:
        assert counted == pytest.approx(13.8e9, rel=0.01)


def test_training_costs_three_passes_and_a_frozen_encoder_less() -> None:
    config = Wav2Vec2Config()
    parts = forward_flops(config, 16_000)
    rest = sum(parts.values()) - parts["convolutions"]
    assert training_flops(config, 16_000) == 3 * sum(parts.values())
    assert training_flops(config, 16_000, freeze="feature-encoder") == parts["convolutions"] + 3 * rest
    assert training_flops(config, 16_000, is_cached=True) == 3 * rest
    assert training_flops(config, 16_000, freeze="encoder") == 0
    by_part = training_flops_by_part(config, 16_000, freeze="feature-encoder")
    assert by_part["convolutions"] == parts["convolutions"] and by_part["layers"] == 3 * parts["layers"]
    config.model_type = "whisper"
    assert training_flops(config, 16_000) == 0


def test_phases_follow_each_other_and_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 1.0, 3.0, 3.5, 7.5, 8.0, 9.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    phase = Phases()
    for name in ("a", "b", "a"):
        phase(name)
    assert phase.take() == {"a": 1.5, "b": 2.0}  # what is between two phases' ends belongs to none
    phase("c")
    assert phase.take() == {"c": 0.5}
    assert shares({"a": 1.0, "b": 3.0}) == "b 75.0%, a 25.0%"


def a_step(
    seconds: dict[str, float], num_clips: int = 4, audio: float = 6.0, padding: float = 2.0
) -> StepFacts:
    return StepFacts(0.0, num_clips, audio, padding, seconds)


def made_profiler(folder: Path, flops: float = 0.0, **settings: Any) -> StepProfiler:
    def flops_of(seconds: float) -> dict[str, float]:
        return {"convolutions": flops, "layers": 3 * flops} if flops else {}

    return StepProfiler(folder, torch.device("cpu"), "fp32", flops_of, TrainConfig(**settings))


def test_rates_are_of_the_steps_left_alone_and_phases_of_those_timed(tmp_path: Path) -> None:
    profiler = made_profiler(tmp_path)
    alone = [a_step({"forward": seconds}) for seconds in (1.0, 2.0, 3.0, 4.0, 4.5)]
    timed = [a_step({"forward": seconds, "backward": 2 * seconds}) for seconds in (10.0, 20.0, 60.0)]
    profiler.steps = [a_step({"forward": 100.0})] * 2 + alone + [a_step({"forward": 200.0})] * 3 + timed
    profiler.waited_seconds = 0.5  # until the device had done the steps
    figures = profiler.figures()
    milliseconds = {name: ms for name, ms in figures["phase_milliseconds"].items() if ms}
    assert milliseconds == {"forward": 20_000, "backward": 40_000}
    as_it_runs = {name: ms for name, ms in figures["host_milliseconds"].items() if ms}
    assert as_it_runs == pytest.approx({"forward": 2_900, "device wait": 100})
    assert figures["step_milliseconds"] == pytest.approx(15_000 / 5)
    assert figures["clips_per_second"] == pytest.approx(20 / 15)
    assert figures["audio_seconds_per_second"] == pytest.approx(30 / 15)
    assert figures["padding_share"] == pytest.approx(0.25)
    assert "share_of_peak" not in figures and "gpu_idle_share" not in figures


def test_the_host_waits_for_the_device_only_around_the_steps_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[int] = []
    profiler = made_profiler(tmp_path)

    def wait(device: torch.device) -> None:
        waited.append(len(profiler.steps))

    monkeypatch.setattr("audiocls.log.profiling.synchronize", wait)
    monkeypatch.setattr("audiocls.log.phases.synchronize", wait)
    for _ in range(TIMED.start):
        profiler.phase("forward")
        profiler.step(a_step(profiler.phase.take()))
    assert waited == [FREE.start, FREE.stop, TRACED.stop]
    profiler.phase("forward")
    assert waited[3:] == [TIMED.start]
    profiler.finish()


def test_steps_in_which_shapes_are_compiled_are_not_looked_at(tmp_path: Path) -> None:
    profiler = made_profiler(tmp_path, compile=True)
    for number in range(COMPILING + 1):
        profiler.step(a_step({"forward": 1.0 + number}))
    assert [step.seconds for step in profiler.steps] == [{"forward": 1.0 + COMPILING}]
    assert f"{COMPILING + TIMED.start + 1} steps" in str(profiler.finish())


def test_what_a_gpu_does_in_traced_steps_is_put_beside_the_steps_left_alone(tmp_path: Path) -> None:
    profiler = made_profiler(tmp_path, flops=1e6)
    step = a_step({"forward": 0.1})
    profiler.steps = [step] * FREE.stop + [a_step({"forward": 0.5}, audio=12.0, padding=4.0)] * 3 + [step] * 5
    profiler.work = DeviceWork(micro_batches=6, kernels=3000, busy_seconds=3 * 0.12)  # of twice the audio
    profiler.parts = {
        "convolutions": Part(0.1, 0.1),
        "layer 0": Part(0.1, 0.2, 10**9),
        "layer 1": Part(0.2, 0.1, 2 * 10**9),
        "head": Part(0.1, 0.1),
    }
    figures = profiler.figures()
    assert figures["gpu_idle_share"] == pytest.approx(0.4)
    assert (figures["kernels_per_step"], figures["kernels_per_micro_batch"]) == (1000, 500)
    of_peak = figures["part_shares_of_peak"]
    peak = figures["peak_flops_per_second"]
    assert of_peak == pytest.approx({"convolutions": 12e6 / 0.2 / peak, "layers": 36e6 / 0.6 / peak})
    figures |= {"part_shares_of_peak": {"layers": 0.25}, "bound_by": "host"}
    lines = as_table(figures, profiler.parts, tmp_path).splitlines()
    assert "  the GPU is busy for 60.0 ms of a step, idle for 40.0% of it: the host is the bound" in lines
    assert "  1,000 kernels a step, 500 a micro-batch" in lines
    assert "    2 layers                 30.0%    30.0%    25.0%   3,000 MB" in lines
    assert "    head                     10.0%    10.0%" in lines
    assert f"  next: {figures['next_change']}" in lines


def event(name: str, start: float, end: float, *, on_gpu: bool = False, is_range: bool = False) -> Any:
    return SimpleNamespace(
        name=name,
        time_range=SimpleNamespace(start=start, end=end),
        device_type=DeviceType.CUDA if on_gpu else DeviceType.CPU,
        is_user_annotation=is_range,
    )


def test_a_gpu_is_busy_while_any_kernel_of_a_step_runs() -> None:
    kernels = [(0, 10), (5, 8), (9, 20), (30, 40), (30, 35), (110, 150), (200, 210)]
    events = [event("kernel", *span, on_gpu=True) for span in kernels]
    events += [event("forward", 0, 5, is_range=True), event("forward", 6, 8, is_range=True)]
    events += [event("forward", 0, 90, is_range=True, on_gpu=True)]  # kernels' range, none itself
    events += [event("evaluation", 100, 200, is_range=True), event("aten::mm", 0, 300)]
    work = device_work(events)
    assert (work.micro_batches, work.kernels) == (2, 6)
    assert work.busy_seconds == pytest.approx(40e-6)
    assert device_work([event("aten::mm", 0, 300)]) == DeviceWork()


SETTINGS: dict[str, Any] = {"epochs": 6, "batch_size": 4, "gradient_accumulation_steps": 2}


@pytest.fixture
def profiled(lab: Lab) -> tuple[Run, StepProfiler]:
    profiler = made_profiler(lab.folder / "run" / "profile", 1e6, **SETTINGS)
    return lab.train("run", lab.build(), lab.data(24), profiler=profiler, **SETTINGS), profiler


def test_the_trace_names_the_loops_phases(profiled: tuple[Run, StepProfiler]) -> None:
    _, profiler = profiled
    with gzip.open(profiler.folder / "trace.json.gz") as file:
        events = json.load(file)["traceEvents"]
    ranges = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    assert set(ranges) >= set(STEP)
    assert ranges.count("optimizer") == 3  # a step each
    assert ranges.count("forward") == ranges.count("backward") == 6  # two micro-batches


def test_the_timed_steps_are_kept(profiled: tuple[Run, StepProfiler]) -> None:
    _, profiler = profiled
    kept = json.loads((profiler.folder / "steps.json").read_text())
    assert len(kept["steps"]) == 5
    assert set(kept["figures"]["phase_milliseconds"]) == set(STEP)
    assert 0 < kept["figures"]["share_of_peak"] < 1


def test_each_part_of_the_model_has_its_share_of_forward_and_backward(
    profiled: tuple[Run, StepProfiler],
) -> None:
    _, profiler = profiled
    layers = ["layer 0", "layer 1"]
    assert list(profiler.parts) == ["convolutions", "projection", "positional convolution", *layers, "head"]
    assert all(part.forward_seconds > 0 and part.backward_seconds > 0 for part in profiler.parts.values())
    kept = json.loads((profiler.folder / "steps.json").read_text())
    assert kept["parts"].keys() == profiler.parts.keys()
    lines = lines_of_parts(profiler.parts, kept["figures"]["part_shares_of_peak"])
    shown = [line[:27].strip() for line in lines[1:]]
    assert shown == ["convolutions", "projection", "positional convolution", "2 layers", "head"]
    shares = [float(share.rstrip("%")) for line in lines[1:] for share in line[27:].split()[:2]]
    assert sum(shares) == pytest.approx(100, abs=0.05 * len(shares))  # each is rounded


def test_a_part_keeps_what_its_forward_pass_leaves_for_the_backward_pass() -> None:
    weight = torch.randn(100, 100, requires_grad=True)
    kept: list[torch.Tensor] = []
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True, acc_events=True) as profile:
        for clips in (1000, 10):
            with torch.profiler.record_function("forward"):
                with torch.profiler.record_function("kept"):
                    kept.append(torch.ones(clips, 100) @ weight.exp())
                with torch.profiler.record_function("freed"):
                    (kept[-1].detach() + 1).sum()
    parts = part_times(profile.events() or [], on_gpu=False)
    # The larger of the two, in float32: input, product and exponential.
    assert parts["kept"].memory_bytes == pytest.approx(4 * (2 * 1000 * 100 + 100 * 100), rel=0.01)
    assert parts["freed"].memory_bytes < 1000


def test_a_parts_backward_pass_is_that_of_the_operations_in_its_range() -> None:
    left, right = torch.randn(400, 400, requires_grad=True), torch.randn(400, 400, requires_grad=True)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, acc_events=True) as profile:
        with torch.profiler.record_function("forward"):
            with torch.profiler.record_function("large"):
                product = left @ right
            with torch.profiler.record_function("small"):
                total = product.sum()
        with torch.profiler.record_function("backward"):
            total.backward()
    parts = part_times(profile.events() or [], on_gpu=False)
    assert list(parts) == ["large", "small"]
    # Two products of matrices, beside a fill.
    assert parts["large"].backward_seconds > 5 * parts["small"].backward_seconds > 0


def test_training_is_the_same_with_and_without(profiled: tuple[Run, StepProfiler], lab: Lab) -> None:
    plain = lab.train("plain", lab.build(), lab.data(24), **SETTINGS)
    assert all(torch.equal(profiled[0].weights[name], tensor) for name, tensor in plain.weights.items())


def test_a_run_of_few_steps_ends_with_what_there_is(lab: Lab) -> None:
    profiler = made_profiler(lab.folder / "run" / "profile")
    lab.train("run", lab.build(), lab.data(24), profiler=profiler, max_steps=8)
    assert (profiler.folder / "trace.json.gz").exists()
    assert not (profiler.folder / "steps.json").exists()
