"""Which clips train, are evaluated on and test: the splits that a data set has. division.py divides one."""

import dataclasses
import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from audiocls.config import GUIDE_CONFIGS, TrainConfig, fold_meant
from audiocls.data.clips import Clip, Source
from audiocls.data.columns import Columns, alike_labels, clean, split_meant
from audiocls.data.corrections import correct
from audiocls.data.sources import label_order, load_source
from audiocls.errors import UserError, named, number_of

MOST_LONELY = 10  # classes of one clip each that may be meant


@dataclass
class Chosen:
    """The clips of a run before they are decoded; no evaluation where a part of train is to be held out."""

    train: list[Clip]
    evaluation: list[Clip]
    test: list[Clip]
    labels: list[str]
    eval_name: str
    notes: list[str]
    commits: dict[str, str]
    sources: dict[str, Source]  # of the train, evaluation and test clips


def choose_clips(config: TrainConfig, cache_dir: Path) -> Chosen:
    """Load the data sets that `config` names and pick the splits and labels."""
    columns = Columns.named_in(config)
    others = dataclasses.replace(columns, are_optional=True)

    def load(name: str) -> Source:
        is_main = name == config.dataset
        subset = (config.dataset_config if is_main else None) or GUIDE_CONFIGS.get(name)
        revision = config.dataset_revision if is_main else None
        return load_source(
            name, columns if is_main else others, config=subset, revision=revision, cache_dir=cache_dir
        )

    source = load(config.dataset)
    eval_source = load(config.eval_dataset) if config.eval_dataset else source
    test_source = load(config.test_dataset) if config.test_dataset else source
    sources = {"train": source, "evaluation": eval_source, "test": test_source}
    correct(config, dict.fromkeys(sources.values()))
    check_columns(columns, sources.values())
    train_split = find_split(source, config.train_split, "--train-split")
    eval_split = evaluation_split(config, eval_source, train_split)
    taken = {train_split, eval_split} if eval_source is source else {train_split}
    test_split = choose_test_split(config, test_source, taken)
    split_of = {"train": train_split, "evaluation": eval_split, "test": test_split}
    clips = {part: sources[part].splits[split] if split else [] for part, split in split_of.items()}
    notes: list[str] = []
    commits = {}
    for one in dict.fromkeys(sources.values()):
        one.use(*(split_of[part] for part in sources if sources[part] is one))
        notes += [note for note in one.notes if note not in notes]
        if one.commit is not None:
            commits[one.name] = one.commit
    labels = source.label_names or label_order(clip.label for clip in clips["train"])
    check_labels(source, labels, clips["train"], [*clips["evaluation"], *clips["test"]], notes)
    eval_name = config.eval_dataset or eval_split or held_out_name(config, train_split)
    return Chosen(**clips, labels=labels, eval_name=eval_name, notes=notes, commits=commits, sources=sources)


def held_out_name(config: TrainConfig, train_split: str) -> str:
    """What the clips that are evaluated on are, where they are a part of those of a split."""
    if config.split_by == "nothing":
        return f"all of {train_split}"
    if fold := fold_meant(config.split_by):
        return f"fold {fold[0]} of {fold[1]} of {train_split}"
    return f"held out of {train_split}"


def check_columns(columns: Columns, sources: Collection[Source]) -> None:
    """Raises UserError where columns are named and nothing has any."""
    if columns.flags and all(source.holds != "rows" for source in sources):
        name = next(source.name for source in sources)
        raise UserError(f"{name} is a folder, which has no columns: {named(columns.flags)} needs a table.")


def splits_meant(source: Source, name: str) -> list[str]:
    """The source's splits that a name may mean: the one so called, if need be in other letters or words."""
    said = clean(name).casefold()
    alike = [split for split in source.splits if clean(split).casefold() == said]
    meant = [
        split for split in source.splits if split_meant(split) and split_meant(split) == split_meant(said)
    ]
    return [name] if name in source.splits else alike or meant


def find_split(source: Source, name: str, flag: str) -> str:
    """The one split that a name means, with labelled clips in it. Raises UserError."""
    found = splits_meant(source, name)
    if len(found) != 1:
        no = f"several splits that may be {name!r}" if found else f"no split {name!r}"
        raise UserError(f"{source.name} has {no}. It has: {', '.join(source.splits)}. Name one with {flag}.")
    if not source.splits[found[0]]:
        raise UserError(f"The split {found[0]!r} of {source.name} holds no labelled clips.")
    return found[0]


def only_split(source: Source, preferred: str, flag: str) -> str:
    """The one split of a set that was given for one purpose, or the one named after the purpose."""
    only = next(iter(source.splits)) if len(source.splits) == 1 else preferred
    return find_split(source, only, flag)


def evaluation_split(config: TrainConfig, source: Source, train_split: str) -> str | None:
    """The split to evaluate on; None where a part of train is held out."""
    if config.eval_split:
        return find_split(source, config.eval_split, "--eval-split")
    if config.eval_dataset:
        return only_split(source, "validation", "--eval-split")
    if config.split_by != "random":
        return None
    taken = [train_split, *(splits_meant(source, config.test_split) if config.test_split else ())]
    for name in ("validation", "test"):
        if has_clips(source, name, taken):
            return find_split(source, name, "--eval-split")
    return None


def choose_test_split(config: TrainConfig, source: Source, taken: Collection[str | None]) -> str | None:
    """The split scored once at the end; None where no test set is given."""
    if config.test_split:
        return find_split(source, config.test_split, "--test-split")
    if config.test_dataset:
        return only_split(source, "test", "--test-split")
    return find_split(source, "test", "--test-split") if has_clips(source, "test", taken) else None


def has_clips(source: Source, name: str, taken: Collection[str | None]) -> bool:
    """Whether there are clips of the split that a name means, which is not taken for something else."""
    return any(source.splits[split] for split in splits_meant(source, name) if split not in taken)


def check_labels(
    source: Source, labels: list[str], train: list[Clip], others: list[Clip], notes: list[str]
) -> None:
    """Raises UserError where the labels are not those of classes, or are not trained; notes twins of them."""
    name = source.name
    unlabelled = len(source.left_out.get("without a label", ()))
    none = number_of(unlabelled, "row")
    rest = f", and {none} without a label (empty, -1, null, nan)" if unlabelled else ""
    if len(labels) < 2:
        raise UserError(
            f"{name} has one class, {named(labels)}{rest}: a classifier needs at least two. If it is a "
            "table, is --label-column right?"
        )
    if len(train) == len({clip.label for clip in train}) > MOST_LONELY:
        raise UserError(f"{name}: each clip has a label of its own. Is --label-column right?")
    unknown = sorted({clip.label for clip in others} - set(labels))
    alike = [" and ".join(map(repr, twins)) for twins in alike_labels([*labels, *unknown])]
    if unknown:
        nearly = f" (Nearly the same: {'; '.join(alike)}.)" if alike else ""
        raise UserError(
            f"The evaluation or test clips have labels that {name} does not train: {named(unknown)}. "
            f"It trains: {named(labels)}.{nearly}"
        )
    notes += [f"{name}: {twins} are classes of nearly the same name" for twins in alike]


def fingerprint(train: Sequence[str], evaluation: Sequence[str], test: Sequence[str] = ()) -> str:
    """A hash of the division: equal only if train, evaluation and test hold the same clips in order."""
    text = "\0\0".join("\0".join(part) for part in (train, evaluation, test))
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]
