"""From the command line's words to the clips of a run: sources, splits, labels, decoding."""

from dataclasses import dataclass, field

import numpy as np

from audiocls.config import TrainConfig
from audiocls.data.audio import BadAudio, check_length
from audiocls.data.cache import Waveforms, cache_folder, decode_all
from audiocls.data.choice import choose_clips
from audiocls.data.clips import Clip
from audiocls.data.loader import ClipDataset
from audiocls.data.splits import fingerprint, group_split, random_split, stratified_split
from audiocls.errors import InputsRefused, UserError, named

MOST_NAMED = 20  # bad clips that get a line each


@dataclass
class RunData:
    """The clips of a run, decoded."""

    train: ClipDataset
    evaluation: ClipDataset
    test: ClipDataset | None
    labels: list[str]
    eval_name: str  # the split or set that the evaluation is
    notes: list[str] = field(default_factory=list)
    commits: dict[str, str] = field(default_factory=dict)  # of each data set on the Hub

    @property
    def fingerprint(self) -> str:
        """Names this division of these clips."""
        parts = (self.train, self.evaluation, self.test)
        return fingerprint(*(part.identities if part else [] for part in parts))


def prepare_data(
    config: TrainConfig,
    sampling_rate: int,
    min_samples: int,
    window_samples: int | None = None,
) -> RunData:
    """Load, decode, divide and label the clips that `config` names, at `sampling_rate`.

    A clip that does not decode, or gives fewer than `min_samples`, is left out before the division; what lies
    beyond the `window_samples` that the model hears is not decoded.
    Raises InputsRefused where those are more than `max_bad_clips`, UserError where the data set does not fit.
    """
    max_samples, limit = what_is_heard(config.max_seconds, sampling_rate, min_samples, window_samples)
    cache_dir = cache_folder(config.cache_dir)
    chosen = choose_clips(config, cache_dir)
    labels, notes = chosen.labels, chosen.notes
    clips = [*chosen.train, *chosen.evaluation, *chosen.test]
    waveforms = decode_all(
        clips, sampling_rate, max_samples, cache_dir, max_decode_seconds=config.max_decode_seconds
    )
    good = leave_out_bad(waveforms, min_samples, config.max_bad_clips, notes)

    ends = np.cumsum([len(chosen.train), len(chosen.evaluation)])
    train_rows, eval_rows, test_rows = (rows[good[rows]] for rows in np.split(np.arange(len(clips)), ends))
    if not chosen.evaluation:
        train_rows, eval_rows = divide(config, [clips[row] for row in train_rows], train_rows, notes)
    # In order of length, so that a batch of the evaluation needs little padding.
    eval_rows, test_rows = (
        rows[np.argsort(waveforms.num_samples[rows], kind="stable")] for rows in (eval_rows, test_rows)
    )
    for rows, what in ((train_rows, "train"), (eval_rows, "evaluate")):
        if len(rows) == 0:
            raise UserError(
                f"{config.dataset} leaves no clips to {what} on. Give more, or another --eval-fraction."
            )
    if chosen.test and len(test_rows) == 0:
        raise UserError("None of the test clips can be used.")

    has_clips = {clips[row].label for row in train_rows}
    if untrained := [label for label in labels if label not in has_clips]:
        notes.append(f"no clip to train on for: {named(untrained)}")
    if max_samples is not None:
        note_cut(waveforms, max_samples, limit, notes)
    if waveforms.cache is None:
        notes.append(f"{cache_dir} cannot keep the decoded audio: clips are decoded each time they are heard")
    trained = {clips[row].audio.content() for row in train_rows}
    for rows, what in ((eval_rows, "evaluation"), (test_rows, "test")):
        if twice := [clips[row].path for row in rows if clips[row].audio.content() in trained]:
            flatter = f"trained on too: their scores flatter the model ({named(twice, 3)})"
            notes.append(f"{len(twice)} of the {what} clips are {flatter}")

    if config.group_column:
        note_shared_groups(config.group_column, clips, train_rows, eval_rows, test_rows, notes)

    number = {label: id for id, label in enumerate(labels)}
    label_ids = np.array([number[clip.label] for clip in clips])
    train, evaluation, test = (
        ClipDataset(waveforms, rows, label_ids[rows]) for rows in (train_rows, eval_rows, test_rows)
    )
    return RunData(
        train, evaluation, test if chosen.test else None, labels, chosen.eval_name, notes, chosen.commits
    )


def what_is_heard(
    max_seconds: float | None, sampling_rate: int, min_samples: int, window_samples: int | None
) -> tuple[int | None, str]:
    """The samples that are heard of a clip (None: all of them), and in words what limits them."""
    max_samples = None if max_seconds is None else round(max_seconds * sampling_rate)
    if max_samples is not None and max_samples < min_samples:
        shortest = min_samples / sampling_rate
        raise UserError(f"--max-seconds is {max_seconds:g}, less than the model needs, {shortest:g} s.")
    if window_samples is not None and (max_samples is None or window_samples < max_samples):
        return window_samples, f"The model's window of {window_samples / sampling_rate:g} s"
    return max_samples, "" if max_seconds is None else f"--max-seconds {max_seconds:g}"


def leave_out_bad(
    waveforms: Waveforms, min_samples: int, max_bad_clips: float, notes: list[str]
) -> np.ndarray:
    """bool [clips], which ones can be used; the others are noted, a line each."""
    errors = dict(waveforms.errors)
    for row, num_samples in enumerate(waveforms.num_samples.tolist()):
        try:
            check_length(num_samples, min_samples, waveforms.sampling_rate)
        except BadAudio as error:
            errors.setdefault(row, str(error))
    lines = [f"{waveforms.clips[row].path} {error}" for row, error in sorted(errors.items())]
    if len(errors) > max_bad_clips * len(waveforms.clips):
        raise InputsRefused(
            f"{len(errors)} of {len(waveforms.clips)} clips cannot be used, more than --max-bad-clips "
            f"{max_bad_clips:g} allows. First: {'; '.join(lines[:3])}."
        )
    if errors:
        notes += [f"left out: {line}" for line in lines[:MOST_NAMED]]
        notes.append(f"left out in all: {len(errors)} of {len(waveforms.clips)} clips")
    good = np.ones(len(waveforms.clips), bool)
    good[list(errors)] = False
    return good


def divide(
    config: TrainConfig, clips: list[Clip], rows: np.ndarray, notes: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on, rows to evaluate on."""
    if config.split_by == "stratified":
        (train, evaluation), undivided = stratified_split(
            [clip.label for clip in clips], config.eval_fraction, config.seed
        )
        if undivided:
            notes.append(f"too few clips to divide, all to train on: {named(undivided)}")
    elif config.split_by == "group":
        groups = [clip.group for clip in clips if clip.group is not None]
        if len(groups) < len(clips):
            raise UserError(
                f"{len(clips) - len(groups)} clips have nothing in the column {config.group_column}."
            )
        if len(set(groups)) < 2:
            raise UserError(
                f"--group-column {config.group_column} holds one group: there is nothing to divide by."
            )
        train, evaluation = group_split(groups, config.eval_fraction, config.seed)
        held_out = sorted({groups[index] for index in evaluation})
        notes.append(f"held out by {config.group_column}: {named(held_out)}")
    else:
        train, evaluation = random_split(len(clips), config.eval_fraction, config.seed)
    return rows[train], rows[evaluation]


def note_shared_groups(
    column: str,
    clips: list[Clip],
    train_rows: np.ndarray,
    eval_rows: np.ndarray,
    test_rows: np.ndarray,
    notes: list[str],
) -> None:
    """Say which clips are scored whose group (a speaker) is trained on."""
    trained = {clips[row].group for row in train_rows} - {None}
    for rows, what in ((eval_rows, "evaluation"), (test_rows, "test")):
        if shared := [clips[row].group for row in rows if clips[row].group in trained]:
            of = named(sorted({str(group) for group in shared}), 3)
            notes.append(f"{len(shared)} of the {what} clips are of a {column} trained on too: {of}")


def note_cut(waveforms: Waveforms, max_samples: int, limit: str, notes: list[str]) -> None:
    """Say what the `limit` costs: the clips it cuts, and the audio that is never heard."""
    sampling_rate = waveforms.sampling_rate
    seconds = waveforms.seconds[waveforms.num_samples > 0]
    kept = np.minimum(seconds, max_samples / sampling_rate)
    cut = np.count_nonzero(seconds * sampling_rate >= max_samples + 1)
    if cut:
        notes.append(
            f"{limit} cuts {cut / len(seconds):.0%} of the clips; "
            f"{1 - kept.sum() / seconds.sum():.0%} of the audio is never heard"
        )
