"""The order of a run: a pure function of a few integers."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from audiocls.data.batch_plan import BatchPlan, Step, in_batches
from audiocls.data.cache import InMemory
from audiocls.data.collators import Example, WaveformCollator, length_grid, length_quantiles
from audiocls.data.loader import ClipDataset, step_batches


def lengths_of(num_clips: int) -> np.ndarray:
    """Clips of 1 to 10 s."""
    return np.random.default_rng(0).integers(16_000, 160_000, num_clips)


PLANS = [
    BatchPlan(num_clips, size, size * accumulation, seed, epochs=3, lengths=lengths)
    for num_clips, size, accumulation, seed in itertools.product(
        (1, 7, 33, 128, 1_003), (1, 4, 32), (1, 3), (0, 42)
    )
    for lengths in (None, lengths_of(num_clips))  # in any order, and of like length
]


def flat(nested: list) -> list[int]:
    """The clips of micro-batches, steps or epochs, in order."""
    return [clip for part in nested for clip in (flat(part) if isinstance(part, list) else [part])]


def micro_batches(plan: BatchPlan, epoch: int = 0, step_in_epoch: int = 0) -> list[list[int]]:
    """The draws of every micro-batch from a place in the run to its end."""
    return [draws for step in plan.steps_from(epoch, step_in_epoch) for draws in step.micro_batches]


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


@pytest.mark.parametrize("lengths", [None, lengths_of(100)], ids=["any", "of like length"])
def test_a_plan_is_a_function_of_its_numbers_alone_and_of_seed_and_epoch(lengths: np.ndarray | None) -> None:
    def plan(seed: int) -> BatchPlan:
        return BatchPlan(100, 8, 16, seed, epochs=4, lengths=lengths)

    first = [plan(5).steps(epoch) for epoch in range(4)]
    np.random.seed(1)
    torch.manual_seed(1)
    assert [plan(5).steps(epoch) for epoch in reversed(range(4))] == first[::-1]
    orders = {tuple(flat(plan(seed).steps(epoch))) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9
    assert tuple(range(100)) not in orders


@pytest.mark.parametrize("lengths", [None, lengths_of(100)], ids=["any", "of like length"])
def test_micro_batches_only_divide_a_step(lengths: np.ndarray | None) -> None:
    whole = BatchPlan(100, 24, 24, seed=1, epochs=1, lengths=lengths).steps(0)
    for batch_size in (12, 8, 6, 1):
        divided = BatchPlan(100, batch_size, 24, seed=1, epochs=1, lengths=lengths).steps(0)
        assert [flat(step) for step in divided] == [flat(step) for step in whole]


@pytest.mark.parametrize("max_steps", [1, 3, 4, 5, 8, 11, 30])
def test_max_steps_cuts_the_same_plan_and_overrides_epochs(max_steps: int) -> None:
    plan = BatchPlan(50, 8, 16, seed=0, epochs=2, max_steps=max_steps)  # four steps an epoch
    endless = BatchPlan(50, 8, 16, seed=0, epochs=100)
    steps = [step for epoch in range(plan.num_epochs) for step in plan.steps(epoch)]
    assert plan.total_steps == len(steps) == max_steps
    assert all(plan.steps(epoch) for epoch in range(plan.num_epochs))  # no epoch is begun for nothing
    assert steps == [step for epoch in range(plan.num_epochs) for step in endless.steps(epoch)][:max_steps]


@pytest.mark.parametrize("max_steps", [None, 9])
def test_from_a_place_in_the_run_comes_the_rest_of_it(max_steps: int | None) -> None:
    plan = BatchPlan(50, 8, 16, seed=0, epochs=3, max_steps=max_steps)
    whole = micro_batches(plan)
    assert [number % 50 for number in flat(whole)] == flat(
        flat([plan.steps(epoch) for epoch in range(plan.num_epochs)])
    )
    assert sorted(flat(whole)) == list(range(len(flat(whole)))) or max_steps  # counted on over the epochs
    done = 0
    for epoch in range(plan.num_epochs):
        steps = plan.steps(epoch)
        for step_in_epoch, step in enumerate(steps):
            assert micro_batches(plan, epoch, step_in_epoch) == whole[done:]
            done += len(step)
        # The place after an epoch's last step is that before the next one's first.
        assert micro_batches(plan, epoch, len(steps)) == micro_batches(plan, epoch + 1)
    assert done == len(whole)


@pytest.mark.parametrize("leave_early", [False, True])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_step_comes_with_the_batches_of_its_own_clips(num_workers: int, leave_early: bool) -> None:
    waveforms = InMemory([np.zeros(4, np.float32)] * 30)
    clips = ClipDataset(waveforms, np.arange(30), np.arange(30))
    collate = WaveformCollator(SimpleNamespace(padding_value=0.0, do_normalize=False))
    plan = BatchPlan(30, 4, 8, seed=0, epochs=2)
    steps = step_batches(
        clips, plan.steps_from(0, 1), collate, num_workers=num_workers, device=torch.device("cpu")
    )
    places = []
    for step, batches in steps:
        some = list(itertools.islice(batches, 1 if leave_early else None))
        labels = [batch.labels.tolist() for _, batch, _ in some]
        assert [(number, is_last) for number, _, is_last in some] == [(0, False), (1, True)][: len(some)]
        expected = [[draw % 30 for draw in draws] for draws in step.micro_batches]
        assert labels == (expected[:1] if leave_early else expected)
        assert step.num_clips == sum(map(len, expected))
        places.append((step.epoch, step.step_in_epoch))
    assert places == [(0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2), (1, 3)]


# Clips of like length


def computed(plan: BatchPlan, epochs: int = 3) -> float:
    """Samples a padded epoch computes, as a multiple of the real ones."""
    assert plan.lengths is not None
    batches = [plan.lengths[batch] for epoch in range(epochs) for step in plan.steps(epoch) for batch in step]
    return sum(len(batch) * batch.max() for batch in batches) / sum(batch.sum() for batch in batches)


@pytest.mark.parametrize(("batch_size", "accumulation"), [(8, 1), (32, 1), (32, 4)])
def test_bucketing_takes_most_of_the_padding_away(batch_size: int, accumulation: int) -> None:
    """At random 1.6 to 1.8 times the real audio is computed."""
    clips_per_step, lengths = batch_size * accumulation, lengths_of(2_000)
    plan = BatchPlan(2_000, batch_size, clips_per_step, seed=0, epochs=3, lengths=lengths)
    assert computed(plan) < 1.15


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


@pytest.mark.parametrize("max_samples", [1, 16_000, 640_000, 10**9])
def test_batches_bounded_by_samples_keep_the_order_and_hold_as_much_as_they_may(max_samples: int) -> None:
    lengths, order = lengths_of(100).tolist(), list(range(99, -1, -1))
    batches = in_batches(order, 16, lengths, max_samples)
    assert flat([batches]) == order

    def fits(batch: list[int]) -> bool:
        return len(batch) <= 16 and len(batch) * max(lengths[clip] for clip in batch) <= max_samples

    assert all(fits(batch) or len(batch) == 1 for batch in batches)
    assert not any(fits([*batch, after[0]]) for batch, after in itertools.pairwise(batches))
    assert in_batches([], 16, lengths, max_samples) == []


def test_a_compiled_model_meets_few_lengths_and_padding_to_them_stays_small() -> None:
    lengths = lengths_of(500)
    edges = length_quantiles(lengths)
    assert len(edges) == 4 and edges[-1] == lengths.max()
    assert length_quantiles(np.full(9, 16_000)) == (16_000,)
    assert padding_to(edges, lengths) < 0.3


def test_a_gpu_meets_a_few_dozen_lengths_and_padding_to_them_stays_small() -> None:
    lengths = np.random.default_rng(0).integers(16_000, 160_001, 2_000)
    edges = length_grid(lengths)
    assert len(edges) < 50 and edges[-1] == lengths.max()
    assert padding_to(edges, lengths) - padding_to((), lengths) < 0.03
    assert length_grid(np.full(9, 16_000)) == (16_000,)


def padding_to(edges: tuple[int, ...], lengths: np.ndarray) -> float:
    """The padding's share of the audio, in batches of 16 of such clips; checks that nothing else is met."""
    extractor = SimpleNamespace(padding_value=0.0, do_normalize=False, return_attention_mask=True)
    collate = WaveformCollator(extractor, with_lengths=True, edges=edges)
    plan = BatchPlan(len(lengths), 16, 16, seed=0, epochs=1, lengths=lengths)
    batches = [
        collate([Example(np.ones(lengths[clip], np.float32)) for clip in clips])
        for clips in micro_batches(plan)
    ]
    assert not edges or {batch.inputs["input_values"].shape[1] for batch in batches} <= set(edges)
    return sum(batch.padding_samples for batch in batches) / sum(batch.num_samples for batch in batches)


def test_balanced_classes_are_drawn_alike_often_and_an_epoch_is_as_long() -> None:
    labels = np.repeat([0, 2, 5], [60, 7, 33])
    plan = BatchPlan(100, 4, 8, seed=1, epochs=3, balanced_labels=labels)
    steps = list(plan.steps_from(0, 0))
    assert len(steps) == plan.total_steps == 39
    seen = []
    for epoch in range(3):
        draws = [
            draw for step in steps if step.epoch == epoch for part in step.micro_batches for draw in part
        ]
        clips = np.array([draw % 100 for draw in draws])
        assert len(draws) == 100
        sizes = np.unique(labels[clips], return_counts=True)[1]
        assert sorted(sizes.tolist()) == [33, 33, 34]
        assert set(np.flatnonzero(labels == 2)) <= set(clips.tolist())  # all of the smallest, several times
        seen += draws
    assert len(set(seen)) == 300, "each use of a clip has a draw of its own"
    assert len({draw % 100 for draw in seen if draw % 100 < 60}) > 45, "of the largest others each time"


def test_a_balanced_run_goes_on_from_any_place_and_still_brings_lengths_together() -> None:
    generator = np.random.default_rng(0)
    labels, lengths = generator.integers(0, 3, 50), generator.integers(1, 1_000, 50)
    plan = BatchPlan(50, 2, 4, seed=1, epochs=2, lengths=lengths, balanced_labels=labels)
    steps = list(plan.steps_from(0, 0))
    for place in (1, 7, 13, 20):
        epoch, step_in_epoch = divmod(place, plan.steps_per_epoch)
        assert list(plan.steps_from(epoch, step_in_epoch)) == steps[place:]


def test_without_balance_a_draw_is_the_epoch_times_the_clips_plus_the_clip() -> None:
    plan = BatchPlan(10, 4, 4, seed=0, epochs=2)
    for step in plan.steps_from(0, 0):
        assert {draw // 10 for part in step.micro_batches for draw in part} == {step.epoch}


# Ranks


def test_ranks_share_a_steps_micro_batches_alike_in_padded_audio() -> None:
    lengths = lengths_of(4_000)
    plan = BatchPlan(4_000, 16, 256, seed=0, epochs=1, lengths=lengths)
    for world_size in (2, 3, 4, 8):
        for step in plan.steps_from(0, 0):
            dealt = step.dealt(world_size, lengths)
            assert sorted(itertools.chain(*dealt)) == list(range(len(step.micro_batches)))
            assert max(map(len, dealt)) == -(-len(step.micro_batches) // world_size)
            work = [sum(step.padded_samples(number, lengths) for number in numbers) for numbers in dealt]
            largest = max(step.padded_samples(number, lengths) for number in range(len(step.micro_batches)))
            assert max(work) - min(work) <= largest


def test_every_rank_has_a_micro_batch_where_there_are_enough() -> None:
    lengths = np.array([1, 1, 1, 1, 100])
    step = Step(0, 0, [[0], [1], [2], [3], [4]])
    assert step.dealt(2, lengths) == [[3, 4], [0, 1, 2]]  # no more than three each
    assert step.dealt(3, lengths) == [[4], [0, 2], [1, 3]]
    assert sorted(map(len, step.dealt(5, lengths))) == [1] * 5
    assert sorted(map(len, step.dealt(7, lengths))) == [0, 0, 1, 1, 1, 1, 1]
