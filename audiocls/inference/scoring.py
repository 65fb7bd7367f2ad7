"""A labelled data set classified: how often the model is right."""

import sys
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np

from audiocls.config import GUIDE_CONFIGS, InferConfig
from audiocls.data.cache import cache_folder
from audiocls.data.choice import only_split, split_named
from audiocls.data.clips import Clip
from audiocls.data.prepare import MOST_NAMED
from audiocls.data.sources import Columns, load_source
from audiocls.errors import UserError, named, one_line
from audiocls.inference.classifier import Classifier, Prediction
from audiocls.metrics import accuracy, macro_f1


def labelled_clips(config: InferConfig) -> list[Clip]:
    """The clips of `config.dataset`, in its order; what was assumed or passed over is said on stderr."""
    assert config.dataset is not None
    source = load_source(
        config.dataset,
        Columns(config.audio_column, config.label_column),
        config=config.dataset_config or GUIDE_CONFIGS.get(config.dataset),
        revision=config.dataset_revision,
        cache_dir=cache_folder(None),
    )
    for note in source.notes:
        print(f"note: {one_line(note)}", file=sys.stderr)
    if config.eval_split is not None:
        return split_named(source, config.eval_split, "--eval-split")
    return only_split(source, "test", "--eval-split")


class Score:
    """Counts how clips were classified while their predictions pass."""

    def __init__(self, classifier: Classifier, clips: list[Clip]) -> None:
        """Raises UserError where the model cannot be scored on these clips."""
        if classifier.backbone.problem_type == "regression":
            raise UserError("--dataset scores labels, and this model gives numbers: give its files instead.")
        self.labels = labels = classifier.labels
        self.ids = {label: id for id, label in enumerate(labels)}
        if not any(clip.label in self.ids for clip in clips):
            theirs = sorted({clip.label for clip in clips})
            raise UserError(
                f"None of the data set's labels ({named(theirs)}) is one of the model's ({named(labels)})."
            )
        self.confusion = np.zeros((len(labels), len(labels)), np.int64)
        self.unknown: list[Prediction] = []  # of clips whose label the model does not have
        self.refused = 0

    def watch(self, predictions: Iterable[Prediction]) -> Iterator[Prediction]:
        for prediction in predictions:
            if prediction.start is None:  # a recording, not a window of it
                self.count(prediction)
            yield prediction

    def count(self, prediction: Prediction) -> None:
        if prediction.true_label not in self.ids:
            self.unknown.append(prediction)
        elif prediction.label is None:
            self.refused += 1
        else:
            true, predicted = self.ids[prediction.true_label], self.ids[prediction.label]
            self.confusion[true, predicted] += 1

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
        total = self.confusion.sum()
        if total == 0:
            yield "no clip could be scored"
            return
        scores = f"accuracy {accuracy(self.confusion):.4f}, macro-F1 {macro_f1(self.confusion):.4f}"
        yield f"{scores} on {total} clips"
        yield from self.matrix()

    def matrix(self) -> Iterator[str]:
        """The confusion matrix of the labels that occur: a row a true label, a column a predicted one."""
        there = np.flatnonzero(self.confusion.sum(axis=0) + self.confusion.sum(axis=1))
        names = [one_line(self.labels[id]) for id in there]
        width = max(len(str(self.confusion.max())), len(str(len(there) - 1))) + 2
        left = max(map(len, names))
        yield "a row for each true label, a column for each predicted one, in the same order:"
        yield " " * (left + 4) + "".join(f"{number:{width}}" for number in range(len(there)))
        for number, (id, name) in enumerate(zip(there, names, strict=True)):
            cells = "".join(f"{count or '.':>{width}}" for count in self.confusion[id, there].tolist())
            yield f"{number:3} {name:{left}}{cells}"
