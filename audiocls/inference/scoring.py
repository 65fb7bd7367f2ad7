"""A labelled data set classified: how often the model is right."""

from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from audiocls.config import GUIDE_CONFIGS, InferConfig
from audiocls.data.cache import cache_folder
from audiocls.data.clips import Clip, Segment
from audiocls.data.columns import Columns, clean
from audiocls.data.sources import load_source
from audiocls.data.splits import check_columns, find_split, only_split
from audiocls.errors import UserError, named, one_line, tell
from audiocls.findings import MOST_NAMED
from audiocls.inference.classifier import Classifier, Prediction
from audiocls.metrics import SCORES, all_scores, confusion_matrix


def labelled_clips(config: InferConfig) -> list[Clip]:
    """The clips of `config.dataset`, in its order; what was assumed or passed over is said on stderr."""
    assert config.dataset is not None
    columns = Columns.named_in(config)
    source = load_source(
        config.dataset,
        columns,
        config=config.dataset_config or GUIDE_CONFIGS.get(config.dataset),
        revision=config.dataset_revision,
        cache_dir=cache_folder(None),
    )
    check_columns(columns, [source])
    if config.eval_split is not None:
        split = find_split(source, config.eval_split, "--eval-split")
    else:
        split = only_split(source, "test", "--eval-split")
    source.use(split)
    for note in source.notes:
        tell(f"note: {note}")
    clips = source.splits[split]
    tell(f"data: {source.account({f'classify ({split})': len(clips)})}")
    return clips


def in_order_of(clips: list[Clip], predictions: Iterable[Prediction]) -> Iterator[Prediction]:
    """The predictions in the order of the clips, with a clip's windows before it.

    Those of segments come in the order in which recordings are read; what is early is held, without audio.
    """
    if not any(isinstance(clip.audio, Segment) for clip in clips):
        yield from predictions
        return
    held: dict[tuple[str | None, str | None], deque[list[Prediction]]] = defaultdict(deque)
    waiting = iter(clips)
    awaited = next(waiting, None)
    of_clip: list[Prediction] = []
    for prediction in predictions:
        of_clip.append(prediction)
        if prediction.start is not None:  # a window: its clip is to come
            continue
        held[prediction.path, prediction.true_label].append(of_clip)
        of_clip = []
        while awaited is not None and (found := held.get((awaited.path, awaited.label))):
            yield from found.popleft()
            if not found:
                del held[awaited.path, awaited.label]
            awaited = next(waiting, None)


class ScoredClips:
    """Keeps how clips were classified while their predictions pass."""

    def __init__(self, classifier: Classifier, clips: list[Clip]) -> None:
        """Raises UserError where the model cannot be scored on these clips."""
        if classifier.backbone.problem_type == "regression":
            raise UserError("--dataset scores labels, and this model gives numbers: give its files instead.")
        self.labels = labels = classifier.labels
        self.ids = {clean(label): id for id, label in enumerate(labels)}  # as a data set's labels are
        if not any(clip.label in self.ids for clip in clips):
            theirs = sorted({clip.label for clip in clips})
            raise UserError(
                f"None of the data set's labels ({named(theirs)}) is one of the model's ({named(labels)})."
            )
        self.true: list[int] = []  # the id of each clip's label
        self.probabilities: list[np.ndarray] = []  # float64 [labels] of each clip
        self.unknown: list[Prediction] = []  # of clips whose label the model does not have
        self.refused = 0

    def watch(self, predictions: Iterable[Prediction], top_k: int) -> Iterator[Prediction]:
        """The predictions, which hold the score of every label, with the best `top_k` of each."""
        for prediction in predictions:
            if prediction.start is None:  # a recording, not a window of it
                self.keep(prediction)
            yield replace(prediction, scores=prediction.scores[:top_k])

    def keep(self, prediction: Prediction) -> None:
        if prediction.true_label not in self.ids:
            self.unknown.append(prediction)
        elif not prediction.scores:
            self.refused += 1
        else:
            self.true.append(self.ids[prediction.true_label])
            scores = dict(prediction.scores)
            self.probabilities.append(np.array([scores[label] for label in self.labels]))

    def lines(self) -> Iterator[str]:
        """What a person reads of it."""
        if self.unknown:
            counts = Counter(str(one.true_label) for one in self.unknown)
            yield f"clips not scored, as the model has no such label: {len(self.unknown)}"
            yield "  labels: " + ", ".join(f"{label!r} ({count})" for label, count in counts.most_common())
            yield from (f"  {one.path}" for one in self.unknown[:MOST_NAMED])
            if len(self.unknown) > MOST_NAMED:
                yield f"  and {len(self.unknown) - MOST_NAMED} more"
        if self.refused:
            yield f"clips not scored, as they cannot be used: {self.refused}"
        if not self.true:
            yield "no clip could be scored"
            return
        labels, probabilities = np.array(self.true), np.stack(self.probabilities)
        scores = all_scores(labels, probabilities)
        shown = ", ".join(f"{SCORES[name].title} {value:.4f}" for name, value in scores.items())
        yield f"{shown} on {len(labels)} clips"
        yield from matrix_lines(confusion_matrix(labels, probabilities), self.labels)


def matrix_lines(confusion: np.ndarray, labels: list[str]) -> Iterator[str]:
    """The confusion matrix of the labels that occur: a row a true label, a column a predicted one."""
    there = np.flatnonzero(confusion.sum(axis=0) + confusion.sum(axis=1))
    names = [one_line(labels[id]) for id in there]
    width = max(len(str(confusion.max())), len(str(len(there) - 1))) + 2
    left = max(map(len, names))
    yield "a row for each true label, a column for each predicted one, in the same order:"
    yield " " * (left + 4) + "".join(f"{number:{width}}" for number in range(len(there)))
    for number, (id, name) in enumerate(zip(there, names, strict=True)):
        cells = "".join(f"{count or '.':>{width}}" for count in confusion[id, there].tolist())
        yield f"{number:3} {name:{left}}{cells}"
