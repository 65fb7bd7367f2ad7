"""--profile: ranges that match the loop, figures that add up; operations counted as torch counts them."""

import gzip
import json
from typing import Any

import pytest
import torch
from conftest import Lab, Run
from torch.utils.flop_counter import FlopCounterMode
from transformers import Wav2Vec2Config, Wav2Vec2ForSequenceClassification

from audiocls.log.flops import forward_flops, training_flops
from audiocls.log.profiling import (
    STEP,
    Phases,
    StepFacts,
    StepProfiler,
    as_table,
    part_times,
    shares,
    summarize,
)


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


def test_figures_of_steps_are_medians_and_totals() -> None:
    steps = [
        StepFacts(0.0, 4, 6.0, 2.0, {"forward": seconds, "backward": 2 * seconds})
        for seconds in (1.0, 2.0, 6.0)
    ]
    figures = summarize(steps, 0.0, torch.device("cpu"), "fp32")
    milliseconds = {name: ms for name, ms in figures["phase_milliseconds"].items() if ms}
    assert milliseconds == {"forward": 2000, "backward": 4000}
    assert figures["clips_per_second"] == pytest.approx(12 / 27)
    assert figures["audio_seconds_per_second"] == pytest.approx(18 / 27)
    assert figures["padding_share"] == pytest.approx(0.25)
    assert "share_of_peak" not in figures


SETTINGS: dict[str, Any] = {"epochs": 4, "batch_size": 4, "gradient_accumulation_steps": 2}


@pytest.fixture
def profiled(lab: Lab) -> tuple[Run, StepProfiler]:
    profiler = StepProfiler(lab.folder / "run" / "profile", torch.device("cpu"), "fp32", lambda seconds: 1e6)
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
    lines = as_table(kept["figures"], profiler.parts, 5, profiler.folder).splitlines()
    shares = [line.split() for line in lines if line.startswith("    ")]
    assert [" ".join(line[:-2]) for line in shares] == list(profiler.parts)
    total = sum(float(share.rstrip("%")) for line in shares for share in line[-2:])
    assert total == pytest.approx(100, abs=0.05 * 2 * len(shares))  # each is rounded


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
    profiler = StepProfiler(lab.folder / "run" / "profile", torch.device("cpu"), "fp32", lambda seconds: 0.0)
    lab.train("run", lab.build(), lab.data(24), profiler=profiler, max_steps=3)
    assert (profiler.folder / "trace.json.gz").exists()
    assert not (profiler.folder / "steps.json").exists()
