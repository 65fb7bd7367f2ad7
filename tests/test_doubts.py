"""Doubted labels: against cleanlab, on a case worked by hand, and through doubted.csv back into a run."""

import csv
from pathlib import Path

import numpy as np
import pytest

from audiocls.reporting.doubts import COLUMNS, doubted, write_doubted
from audiocls.reporting.results import Predictions, RunResults


def pooled(
    labels: np.ndarray,
    probabilities: np.ndarray,
    paths: list[str] | None = None,
    untrained: tuple[str, ...] = (),
) -> RunResults:
    """What folds made of clips whose labels are called 0, 1, ..."""
    names = [str(label) for label in range(probabilities.shape[1])]
    paths = paths or [f"{n}.wav" for n in range(len(labels))]
    predictions = Predictions("folds", paths, labels, probabilities)
    return RunResults({"folds": [{}], "untrained": untrained}, names, [], predictions, None, None)


def some(num_labels: int, num_clips: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels of which a tenth are wrong, and probabilities of a model that is right more often than they."""
    generator = np.random.default_rng(seed)
    true = generator.permutation(np.arange(num_clips) % num_labels)
    logits = generator.normal(size=(num_clips, num_labels)) * generator.uniform(0.5, 2, num_labels)
    logits[np.arange(num_clips), true] += 3
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = np.where(generator.random(num_clips) < 0.1, generator.integers(0, num_labels, num_clips), true)
    return labels, probabilities


@pytest.mark.parametrize(("num_labels", "num_clips"), [(2, 60), (3, 200), (10, 500), (30, 600)])
@pytest.mark.filterwarnings("ignore")  # what cleanlab says about itself
def test_the_doubted_clips_are_cleanlabs(num_labels: int, num_clips: int) -> None:
    from cleanlab.filter import find_label_issues

    for seed in range(10):
        labels, probabilities = some(num_labels, num_clips, seed)
        expected = find_label_issues(
            labels,
            probabilities,
            filter_by="confident_learning",
            return_indices_ranked_by="self_confidence",
            n_jobs=1,
        )
        found = doubted(pooled(labels, probabilities))
        assert [doubt.clip for doubt in found] == list(expected)


def test_a_doubt_names_the_likeliest_label_and_both_probabilities() -> None:
    labels = np.array([0, 0, 0, 1, 1, 1] * 3)
    rows = [[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.1, 0.9], [0.3, 0.7], [0.45, 0.55]] * 3
    rows[2] = [0.05, 0.95]
    # Of label 1 the mean probability over its clips is 0.717: clip 2 has more, and little of its own label 0.
    (doubt,) = doubted(pooled(labels, np.array(rows)))
    assert doubt == (2, 1, 0.95, 0.05)


def test_a_class_without_clips_and_clips_without_doubt_are_no_trouble() -> None:
    assert doubted(pooled(np.array([0, 1]), np.array([[0.9, 0.1, 0], [0.1, 0.9, 0]]))) == []


def test_doubted_csv_has_the_doubts_most_doubted_first_and_no_formulas(tmp_path: Path) -> None:
    labels, probabilities = some(3, 100, 0)
    paths = [f"=cmd({n}).wav" if n % 2 else f'dir,"x"/{n}\n.wav' for n in range(100)]
    doubts = doubted(pooled(labels, probabilities, paths))
    write_doubted(tmp_path, pooled(labels, probabilities, paths))
    with (tmp_path / "doubted.csv").open(newline="") as file:
        header, *rows = list(csv.reader(file))
    assert tuple(header) == COLUMNS
    assert [row[0].removeprefix("'") for row in rows] == [paths[doubt.clip] for doubt in doubts]
    assert all(not row[0].startswith("=") for row in rows)
    own = [float(row[4]) for row in rows]
    assert own == sorted(own)
    assert all(row[2] != row[1] and float(row[3]) > float(row[4]) for row in rows)


def test_a_label_that_the_scoring_model_could_not_know_is_not_doubted() -> None:
    labels, probabilities = some(4, 200, 0)
    all_doubts = doubted(pooled(labels, probabilities))
    kept = doubted(pooled(labels, probabilities, untrained=("2",)))
    assert kept == [doubt for doubt in all_doubts if labels[doubt.clip] != 2] != all_doubts


def test_a_name_that_is_no_text_does_not_spoil_the_list(tmp_path: Path) -> None:
    labels, probabilities = some(3, 100, 0)
    paths = [f"{n}\udce9.wav" for n in range(100)]
    first = doubted(pooled(labels, probabilities))[0].clip
    paths[first] = "plain.wav"
    write_doubted(tmp_path, pooled(labels, probabilities, paths))
    assert [row.split(",")[0] for row in (tmp_path / "doubted.csv").read_text().splitlines()] == [
        "path",
        "plain.wav",
    ]


def test_models_that_guess_doubt_nothing() -> None:
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet(np.ones(4), 200)
    assert doubted(pooled(generator.integers(0, 4, 200), probabilities)) == []
    assert doubted(pooled(np.arange(200) % 4, np.eye(4)[np.r_[np.arange(190) % 4, np.zeros(10, int)]])) != []


def test_clips_of_which_the_models_are_sure_are_ranked_by_how_sure(tmp_path: Path) -> None:
    """Probabilities are kept to six digits, not six decimals."""
    labels = np.arange(100) % 2
    own = np.full(100, 0.99)
    own[[7, 11, 21]] = 1e-9, 1e-30, 1e-12
    probabilities = np.where(np.arange(2) == labels[:, None], own[:, None], 1 - own[:, None])
    assert [doubt.clip for doubt in doubted(pooled(labels, probabilities))] == [11, 21, 7]
    write_doubted(tmp_path, pooled(labels, probabilities))
    assert (tmp_path / "doubted.csv").read_text().splitlines()[1].endswith("1e-30")
