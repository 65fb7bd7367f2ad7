"""The alarm rings when a model guesses, once, and not before it could have learned."""

import math
from typing import Any

import numpy as np
import pytest

from audiocls.config import TrainConfig
from audiocls.log.chance_alarm import ChanceAlarm

SHARES = np.full(14, 1 / 14)
GUESSING = {"loss": math.log(14), "accuracy": 0.08, "num_clips": 113}


def alarm(**settings: Any) -> ChanceAlarm:
    return ChanceAlarm(TrainConfig(**settings), SHARES)


@pytest.mark.parametrize(
    ("progress", "epoch", "rings"), [(0.4, 1.9, False), (0.5, 1, True), (0.2, 2, True), (0.1, 50, False)]
)
def test_it_waits_for_half_of_the_steps_or_two_epochs(progress: float, epoch: float, rings: bool) -> None:
    assert (alarm()(progress, epoch, GUESSING) is not None) == rings


@pytest.mark.parametrize(
    "better",
    [{"loss": 0.9 * math.log(14)}, {"accuracy": 0.2}],
    ids=["loss below ln(classes)", "accuracy above luck"],
)
def test_it_is_silent_where_something_was_learned(better: dict[str, float]) -> None:
    assert alarm()(1.0, 10, GUESSING | better) is None


def test_it_rings_once() -> None:
    one = alarm()
    assert one(1.0, 5, GUESSING) and one(1.0, 6, GUESSING) is None


def test_knowing_only_how_frequent_the_labels_are_is_guessing_too() -> None:
    entropy = -0.9 * math.log(0.9) - 0.1 * math.log(0.1)  # what such a model's loss is
    guessing = {"loss": entropy, "accuracy": 0.9, "num_clips": 100}
    uneven = np.array([0.9, 0.1, 0.0])
    assert ChanceAlarm(TrainConfig(), uneven)(1.0, 5, guessing)
    assert ChanceAlarm(TrainConfig(), uneven)(1.0, 5, guessing | {"loss": 0.9 * entropy}) is None


def test_on_the_guides_recipe_it_names_what_usually_helps() -> None:
    advice = alarm()(1.0, 10, GUESSING)
    assert advice is not None
    for flag in ("--epochs 40", "--learning-rate", "--max-seconds", "--freeze feature-encoder"):
        assert flag in advice
    assert "8.0%" in advice and f"{math.log(14):.3f}" in advice


def test_it_advises_only_what_would_change_something() -> None:
    advice = alarm(max_steps=50)(1.0, 10, GUESSING)
    assert advice is not None and "--max-steps 200" in advice and "--epochs" not in advice
    ring = ChanceAlarm(TrainConfig(), SHARES, has_feature_encoder=False, used_share=0.97)
    advice = ring(1.0, 10, GUESSING)
    assert advice is not None and "--max-seconds" not in advice and "--freeze" not in advice


def test_it_is_silent_in_a_run_of_a_few_steps() -> None:
    assert alarm(max_steps=4)(1.0, 10, GUESSING) is None


def test_it_does_not_advise_what_is_done_already() -> None:
    advice = alarm(max_seconds=None, freeze="feature-encoder", learning_rate=1e-3)(1.0, 10, GUESSING)
    assert advice is not None
    for flag in ("--learning-rate", "--max-seconds", "--freeze feature-encoder"):
        assert flag not in advice


def test_above_a_frozen_encoder_it_advises_a_learning_rate_for_a_head() -> None:
    low, high = (alarm(freeze="encoder", learning_rate=rate)(1.0, 10, GUESSING) for rate in (1e-4, 3e-3))
    assert low is not None and "--learning-rate 3e-3" in low
    assert high is not None and "--learning-rate" not in high


def test_it_is_silent_where_only_one_label_is_evaluated() -> None:
    perfect = {"loss": 0.003, "accuracy": 1.0, "num_clips": 10}
    assert ChanceAlarm(TrainConfig(), np.array([1.0, 0.0]))(1.0, 5, perfect) is None
