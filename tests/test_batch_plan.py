"""The order of a run: a pure function of a few integers."""

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from audiocls.data.batch_plan import BatchPlan, in_batches
from audiocls.data.loader import ClipDataset, Example, WaveformCollator, length_edges, make_loader

PLANS = [
    BatchPlan(num_clips, batch_size, batch_size * accumulation, seed=seed, epochs=3)
    for num_clips, batch_size, accumulation, seed in itertools.product(
        (1, 7, 33, 128), (1, 4, 32), (1, 3), (0, 42)
    )
]


def flat(nested: list) -> list[int]:
    """The clips of micro-batches, steps or epochs, in order."""
    return [clip for part in nested for clip in (flat(part) if isinstance(part, list) else [part])]


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_an_epoch_holds_every_clip_once_in_full_steps_but_for_the_last(plan: BatchPlan) -> None:
    for epoch in range(plan.epochs):
        steps = plan.steps(epoch)
        assert sorted(flat(steps)) == list(range(plan.num_clips))
        assert len(steps) == plan.steps_per_epoch
        full = plan.clips_per_step
        assert all(len(flat(step)) == full for step in steps[:-1])
        assert len(flat(steps[-1])) == plan.num_clips - full * (len(steps) - 1)
        for step in steps:
            assert all(len(batch) == plan.batch_size for batch in step[:-1])
            assert 1 <= len(step[-1]) <= plan.batch_size
            assert len(step) <= plan.clips_per_step // plan.batch_size


def test_a_plan_is_a_function_of_its_numbers_alone() -> None:
    def plan() -> BatchPlan:
        return BatchPlan(100, 8, 16, seed=5, epochs=4)

    first = [plan().steps(epoch) for epoch in range(4)]
    np.random.seed(1)
    torch.manual_seed(1)
    assert [plan().steps(epoch) for epoch in reversed(range(4))] == first[::-1]


def test_each_epoch_and_each_seed_has_an_order_of_its_own() -> None:
    orders = {
        tuple(flat(BatchPlan(50, 8, 16, seed=seed, epochs=3).steps(epoch)))
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9
    assert tuple(range(50)) not in orders


def test_micro_batches_only_divide_a_step() -> None:
    whole = BatchPlan(100, 24, 24, seed=1, epochs=1).steps(0)
    for batch_size, accumulation in ((12, 2), (8, 3), (6, 4), (1, 24)):
        divided = BatchPlan(100, batch_size, batch_size * accumulation, seed=1, epochs=1).steps(0)
        assert [flat(step) for step in divided] == [flat(step) for step in whole]


@pytest.mark.parametrize("max_steps", [1, 3, 4, 5, 8, 11, 30])
def test_max_steps_cuts_the_same_plan_and_overrides_epochs(max_steps: int) -> None:
    plan = BatchPlan(50, 8, 16, seed=0, epochs=2, max_steps=max_steps)  # four steps an epoch
    endless = BatchPlan(50, 8, 16, seed=0, epochs=100)
    steps = [step for epoch in range(plan.num_epochs) for step in plan.steps(epoch)]
    assert plan.total_steps == len(steps) == max_steps
    assert all(plan.steps(epoch) for epoch in range(plan.num_epochs))  # no epoch is begun for nothing
    assert steps == [step for epoch in range(plan.num_epochs) for step in endless.steps(epoch)][:max_steps]


def test_max_steps_counts_where_no_epoch_is_short() -> None:
    plan = BatchPlan(50, 8, 16, seed=0, epochs=2)
    assert (plan.steps_per_epoch, plan.total_steps, plan.num_epochs) == (4, 8, 2)


@pytest.mark.parametrize("max_steps", [None, 9])
def test_from_a_place_in_the_run_comes_the_rest_of_it(max_steps: int | None) -> None:
    plan = BatchPlan(50, 8, 16, seed=0, epochs=3, max_steps=max_steps)
    whole = list(plan.micro_batches(0, 0))
    assert [number % 50 for number in flat(whole)] == flat(
        flat([plan.steps(epoch) for epoch in range(plan.num_epochs)])
    )
    assert sorted(flat(whole)) == list(range(len(flat(whole)))) or max_steps  # counted on over the epochs
    done = 0
    for epoch in range(plan.num_epochs):
        steps = plan.steps(epoch)
        for step_in_epoch, step in enumerate(steps):
            assert list(plan.micro_batches(epoch, step_in_epoch)) == whole[done:]
            done += len(step)
        # The place after an epoch's last step is that before the next one's first.
        assert list(plan.micro_batches(epoch, len(steps))) == list(plan.micro_batches(epoch + 1, 0))
    assert done == len(whole)


def test_what_is_due_every_so_often() -> None:
    plan = BatchPlan(50, 8, 16, seed=0, epochs=3)
    place = [(step, (step - 1) % 4 + 1) for step in range(1, 13)]
    assert [step for step, in_epoch in place if plan.is_due("epoch", step, in_epoch)] == [4, 8, 12]
    assert [step for step, in_epoch in place if plan.is_due(5, step, in_epoch)] == [5, 10]
    assert [step for step, in_epoch in place if plan.is_due(1, step, in_epoch)] == list(range(1, 13))


def test_in_batches_keeps_order_and_shortens_the_last() -> None:
    assert in_batches([5, 4, 3, 2, 1], 2) == [[5, 4], [3, 2], [1]]
    assert in_batches([], 2) == []


def test_workers_do_not_change_what_a_step_sees() -> None:
    lengths = np.random.default_rng(0).integers(400, 900, 30).tolist()
    # A list in the place of Waveforms, which is asked for nothing but clips by number.
    waveforms: Any = [np.full(length, index, np.float32) for index, length in enumerate(lengths)]
    clips = ClipDataset(waveforms, np.arange(30), np.arange(30))
    extractor = SimpleNamespace(padding_value=0.0, do_normalize=False, return_attention_mask=True)
    plan = BatchPlan(30, 4, 8, seed=0, epochs=2)

    def seen(num_workers: int) -> list:
        loader = make_loader(
            clips,
            plan.micro_batches(0, 1),
            WaveformCollator(extractor, with_lengths=True),
            num_workers=num_workers,
            device=torch.device("cpu"),
        )
        return [(batch.labels.tolist(), batch.inputs, batch.num_samples) for batch in loader]

    alone, with_two = seen(0), seen(2)
    assert [labels for labels, _, _ in alone] == [
        [number % 30 for number in numbers] for numbers in plan.micro_batches(0, 1)
    ]
    assert len(alone) == len(with_two)
    for (labels, inputs, num_samples), (other_labels, other_inputs, other_num_samples) in zip(
        alone, with_two, strict=True
    ):
        assert (labels, num_samples) == (other_labels, other_num_samples)
        assert inputs.keys() == other_inputs.keys() == {"input_values", "lengths"}
        assert all(torch.equal(inputs[name], other_inputs[name]) for name in inputs)


# Clips of like length


def lengths_of(num_clips: int) -> np.ndarray:
    return np.random.default_rng(0).integers(16_000, 160_000, num_clips)


def computed(plan: BatchPlan, epochs: int = 3) -> float:
    """Samples a padded epoch computes, as a multiple of the real ones."""
    assert plan.lengths is not None
    batches = [plan.lengths[batch] for epoch in range(epochs) for step in plan.steps(epoch) for batch in step]
    return sum(len(batch) * batch.max() for batch in batches) / sum(batch.sum() for batch in batches)


@pytest.mark.parametrize(("batch_size", "accumulation"), [(8, 1), (32, 1), (32, 4), (7, 3), (64, 8)])
def test_bucketed_steps_hold_every_clip_once_in_a_new_order_each_epoch(
    batch_size: int, accumulation: int
) -> None:
    plan = BatchPlan(
        1_003, batch_size, batch_size * accumulation, seed=0, epochs=3, lengths=lengths_of(1_003)
    )
    for epoch in range(3):
        steps = plan.steps(epoch)
        assert len(steps) == plan.steps_per_epoch
        assert all(len(flat([step])) == plan.clips_per_step for step in steps[:-1])
        assert sorted(flat(steps)) == list(range(1_003))
    assert plan.steps(0) == plan.steps(0)
    assert plan.steps(0) != plan.steps(1)


@pytest.mark.parametrize(("batch_size", "accumulation"), [(8, 1), (32, 1), (32, 4)])
def test_bucketing_takes_most_of_the_padding_away(batch_size: int, accumulation: int) -> None:
    """Clips of 1 to 10 s: at random 1.6 to 1.8 times the real audio is computed."""
    plan = BatchPlan(
        2_000, batch_size, batch_size * accumulation, seed=0, epochs=3, lengths=lengths_of(2_000)
    )
    assert computed(plan) < 1.15


def test_how_a_step_is_divided_does_not_change_its_clips() -> None:
    whole, parts = (
        BatchPlan(500, size, 64, seed=3, epochs=1, lengths=lengths_of(500)).steps(0) for size in (64, 8)
    )
    assert [flat([step]) for step in whole] == [flat([step]) for step in parts]


def test_micro_batches_are_bounded_by_their_padded_audio() -> None:
    lengths = lengths_of(400)
    plan = BatchPlan(400, 32, 64, seed=0, epochs=1, lengths=lengths, max_batch_samples=640_000)
    batches = [batch for step in plan.steps(0) for batch in step]
    assert sorted(flat([batches])) == list(range(400))
    assert all(len(batch) <= 32 for batch in batches)
    assert all(len(batch) * lengths[batch].max() <= 640_000 or len(batch) == 1 for batch in batches)
    assert max(len(batch) for batch in batches) > 2 * min(len(batch) for batch in batches)
    unbounded = BatchPlan(400, 32, 64, seed=0, epochs=1, lengths=lengths).steps(0)
    assert [flat([step]) for step in plan.steps(0)] == [flat([step]) for step in unbounded]


def test_a_compiled_model_meets_few_lengths_and_padding_to_them_stays_small() -> None:
    lengths = np.random.default_rng(0).integers(16_000, 160_000, 500)
    edges = length_edges(lengths)
    assert len(edges) == 4 and edges[-1] == lengths.max()
    assert length_edges(np.full(9, 16_000)) == (16_000,)
    extractor = SimpleNamespace(padding_value=0.0, do_normalize=False, return_attention_mask=True)
    collate = WaveformCollator(extractor, with_lengths=True, edges=edges)
    plan = BatchPlan(500, 16, 16, seed=0, epochs=1, lengths=lengths)
    batches = [
        collate([Example(np.ones(lengths[clip], np.float32)) for clip in clips])
        for clips in plan.micro_batches(0, 0)
    ]
    assert {batch.inputs["input_values"].shape[1] for batch in batches} <= set(edges)
    padding = sum(batch.padding_samples for batch in batches)
    assert padding < 0.3 * sum(batch.num_samples for batch in batches)
