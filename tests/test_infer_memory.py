"""What is too long is refused with a figure and with what to type; windows of it are not."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from architectures import fine_tuned

from audiocls import Classifier
from audiocls.inference.memory import VALUES_A_FRAME, bytes_a_sample, free_bytes, samples_a_batch

GIGABYTE = 10**9


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return Classifier(fine_tuned("wav2vec2", ["a", "b", "c"]), torch.device("cpu"))


def test_a_recording_without_room_in_memory_is_refused_and_the_rest_goes_on(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    waveforms = [np.random.default_rng(0).standard_normal(16_000 * seconds) for seconds in (4, 1)]
    room = 2 * 16_000 * bytes_a_sample(classifier.backbone)
    monkeypatch.setattr(classifier, "free_bytes", room)
    refused, whole = classifier(waveforms, sampling_rate=16_000)
    assert refused.error is not None and whole.error is None
    for words in ("its 4 s need about", "GB are free", "--window 30", "window_seconds=30", "--max-seconds"):
        assert words in refused.error
    assert classifier(waveforms[0], sampling_rate=16_000, window_seconds=1)[-1].error is None
    assert classifier(waveforms[0], sampling_rate=16_000, max_seconds=1)[0].error is None


def test_a_batch_is_split_where_memory_has_no_room_for_all_of_it(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    waveforms = [np.random.default_rng(seed).standard_normal(16_000) for seed in range(5)]
    shapes: list[tuple[int, ...]] = []
    forward = classifier.model.forward

    def watched(input_values: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        shapes.append(tuple(input_values.shape))
        return forward(input_values, *args, **kwargs)

    monkeypatch.setattr(classifier.model, "forward", watched)
    at_once = classifier(waveforms, sampling_rate=16_000, batch_size=5)
    config = classifier.backbone.config
    a_sample = 4 * 3.5 * config.conv_dim[0] / config.conv_stride[0]  # of a clip that is not in blocks
    monkeypatch.setattr(classifier, "free_bytes", 2.5 * 16_000 * a_sample)
    split = classifier(waveforms, sampling_rate=16_000, batch_size=5)
    assert shapes == [(5, 16_000), (2, 16_000), (2, 16_000), (1, 16_000)]
    for one, other in zip(at_once, split, strict=True):
        assert one.error is None and other.error is None
        assert dict(one.scores) == pytest.approx(dict(other.scores), abs=1e-6)  # float32, other sums


def test_a_batch_has_as_much_room_as_is_free_or_any_where_that_is_not_known(classifier: Classifier) -> None:
    backbone = classifier.backbone
    assert samples_a_batch(backbone, math.inf) is None  # a GPU, or a system that does not say
    assert samples_a_batch(backbone, 0) == 0
    weighted = dataclasses.replace(backbone.config, use_weighted_layer_sum=True, num_hidden_layers=10_000)
    deep = dataclasses.replace(backbone, config=weighted)  # hidden states take more than convolutions
    assert samples_a_batch(deep, GIGABYTE) == int(GIGABYTE / bytes_a_sample(deep))
    assert samples_a_batch(fine_tuned("whisper", ["a", "b"]).backbone, GIGABYTE) is None


def test_a_file_of_more_than_is_decoded_is_referred_to_windows(
    classifier: Classifier, tmp_path: Path
) -> None:
    path = tmp_path / "long.wav"
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(3 * 16_000), 16_000)
    error = classifier(path, max_decode_seconds=2)[0].error
    assert error is not None and error.startswith("is longer than 2 s")
    for words in ("--window", "window_seconds", "--max-decode-seconds", "--max-seconds"):
        assert words in error
    assert classifier(path, max_decode_seconds=2, window_seconds=1)[-1].error is None


def test_the_estimate_is_of_hidden_states_or_of_convolutions_as_a_whole(classifier: Classifier) -> None:
    backbone = classifier.backbone
    hidden, layers = backbone.config.hidden_size, backbone.config.num_hidden_layers
    # 320 samples a frame, 4 bytes a value.
    assert bytes_a_sample(backbone) == 4 * VALUES_A_FRAME * hidden / 320
    weighted = dataclasses.replace(backbone.config, use_weighted_layer_sum=True)
    more = bytes_a_sample(dataclasses.replace(backbone, config=weighted)) - bytes_a_sample(backbone)
    assert more == pytest.approx(4 * 2 * (layers + 1) * hidden / 320)
    stock = fine_tuned("data2vec-audio", ["a", "b"]).backbone
    assert bytes_a_sample(stock) == 4 * 2.5 * stock.config.conv_dim[0] / stock.config.conv_stride[0]
    assert bytes_a_sample(fine_tuned("whisper", ["a", "b"]).backbone) == 0


def test_the_memory_of_a_machine_or_its_container_is_read_where_linux_tells_it(tmp_path: Path) -> None:
    assert math.isinf(free_bytes(tmp_path))
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal:  9000000 kB\nMemAvailable:  8000000 kB\nHugePages: 0\n")
    assert free_bytes(tmp_path) == 8_000_000 * 1024
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.stat").write_text(f"anon {GIGABYTE}\nfile {3 * GIGABYTE}\n")
    (group / "memory.max").write_text("max\n")
    assert free_bytes(tmp_path) == 8_000_000 * 1024
    (group / "memory.max").write_text(f"{4 * GIGABYTE}\n")
    assert free_bytes(tmp_path) == 3 * GIGABYTE  # what is cached of files is given up
    (group / "memory.max").write_text(f"{GIGABYTE // 2}\n")
    assert free_bytes(tmp_path) == 0
