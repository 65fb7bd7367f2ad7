"""From the command line's words to the clips of a run: sources, splits, labels, decoding."""

from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from audiocls.config import TrainConfig
from audiocls.data.audio import DecodeOptions
from audiocls.data.augment import Augmentation
from audiocls.data.cache import Waveforms, cache_folder, decode_all
from audiocls.data.clips import Clip, Segment, same_file_keys
from audiocls.data.division import by_length, divide, shared_recordings
from audiocls.data.limits import NOT_THERE, BadAudio, check_length
from audiocls.data.loader import ClipDataset
from audiocls.data.resampling import Waveform
from audiocls.data.spans import SLACK_SECONDS, short_note
from audiocls.data.splits import choose_clips, fingerprint
from audiocls.errors import MOST_EXAMPLES, InputsRefused, UserError, named, number_of
from audiocls.findings import FINDINGS, MOST_NAMED

PARTS = ("train", "evaluation", "test")


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
    accounts: list[str] = field(default_factory=list)  # of each data set, where all that is in it went

    def sound(self, split: str, index: int) -> tuple[Waveform, int, float]:
        """What is used of a clip of "train", "evaluation" or "test", its rate, and the whole clip's length.

        float32 [samples], in Hz, in seconds; silence that was trimmed is no part of either.
        Raises BadAudio where it was not cached and cannot be read any more.
        """
        clips = self.parts[split]
        row = clips.rows[index]
        return clips.decoded[row], clips.decoded.sampling_rate, float(clips.decoded.seconds[row])

    @property
    def parts(self) -> dict[str, ClipDataset]:
        """The clips by what they are for; without "test" where there are none."""
        made = {"train": self.train, "evaluation": self.evaluation, "test": self.test}
        return {part: clips for part, clips in made.items() if clips is not None}

    @property
    def layout(self) -> tuple[list[str], list[tuple[list[int], list[int]]]]:
        """The labels; and of each part its clips' labels and lengths. What batches are planned by."""
        parts = [(clips.labels.tolist(), clips.num_samples.tolist()) for clips in self.parts.values()]
        return self.labels, parts

    @property
    def fingerprint(self) -> str:
        """A hash of this division of these clips, by their names and labels."""
        parts = self.parts.values()
        return fingerprint(*([f"{clip.path}\0{clip.label}" for clip in part.clips] for part in parts))


def prepare_data(
    config: TrainConfig,
    sampling_rate: int,
    min_samples: int,
    model_max_samples: int | None = None,
) -> RunData:
    """Load, decode, divide and label the clips that `config` names, at `sampling_rate`.

    A clip that does not decode, or gives fewer than `min_samples`, is left out before the division; what lies
    beyond the `model_max_samples` that the model takes is not decoded.
    Raises InputsRefused where those are more than `max_bad_clips`, UserError where the data set does not fit.
    """
    max_samples, limit = kept_samples(config.max_seconds, sampling_rate, min_samples, model_max_samples)
    cache_dir = cache_folder(config.cache_dir)
    chosen = choose_clips(config, cache_dir)
    labels, notes = chosen.labels, chosen.notes
    clips = [*chosen.train, *chosen.evaluation, *chosen.test]
    options = DecodeOptions(
        sampling_rate, max_samples, config.max_decode_seconds, config.channel, config.trim_silence
    )
    waveforms = decode_all(clips, options, cache_dir)
    part_of = np.repeat(PARTS, [len(chosen.train), len(chosen.evaluation), len(chosen.test)])
    good = leave_out_bad(waveforms, part_of, min_samples, config.max_bad_clips, notes)
    note_odd(waveforms, good, notes)
    rows = {part: np.flatnonzero(good & (part_of == part)) for part in PARTS}
    if not chosen.evaluation:
        train = rows["train"]
        rows["train"], rows["evaluation"] = divide(
            config, [clips[row] for row in train], train, waveforms.sound_of, notes
        )
    for part in ("evaluation", "test"):
        rows[part] = by_length(rows[part], waveforms.num_samples)
    for part, what in (("train", "train"), ("evaluation", "evaluate")):
        if len(rows[part]) == 0:
            raise UserError(
                f"{config.dataset} leaves no clips to {what} on. Give more, or another --eval-fraction."
            )

    has_clips = {clips[row].label for row in rows["train"]}
    if untrained := [label for label in labels if label not in has_clips]:
        notes.append(f"no clip to train on for: {named(untrained)}")
    if max_samples is not None:
        note_cut(waveforms, max_samples, limit, notes)
    notes += short_segments(config, waveforms)
    if waveforms.cache is None:
        notes.append(f"{cache_dir} cannot keep the decoded audio: clips are decoded each time they are used")
    keys = same_file_keys(clips)
    notes += two_labels(clips, keys)
    holds_out_nothing = config.split_by == "nothing"
    judged = ["test"] if holds_out_nothing else ["evaluation", "test"]
    for part, shared in trained_too(clips, rows, keys, judged):
        which = named([clip.path for clip in shared], MOST_EXAMPLES)
        flatter = f"trained on too: their scores flatter the model ({which})"
        notes.append(f"{len(shared)} of the {part} clips are {flatter}")
    for part, shared in trained_too(clips, rows, [clip.group for clip in clips], judged):
        groups = named(sorted({str(clip.group) for clip in shared}), 3)
        notes.append(
            f"{len(shared)} of the {part} clips are of a {config.group_column} trained on too: {groups}"
        )

    for part, shared in trained_too(clips, rows, shared_recordings(clips) or [None] * len(clips), judged):
        which = named([clip.path for clip in shared], MOST_EXAMPLES)
        notes.append(
            f"{len(shared)} of the {part} clips are of recordings trained on too, as segments: {which}"
        )

    number = {label: id for id, label in enumerate(labels)}
    label_ids = np.array([number[clip.label] for clip in clips])
    made = {part: ClipDataset(waveforms, rows[part], label_ids[rows[part]]) for part in PARTS}
    if names := tuple(config.augmentations):
        augment = Augmentation(names, config.seed, sampling_rate, min_samples)
        made["train"] = replace(made["train"], augment=augment)
    test = made["test"] if chosen.test else None
    named_parts = {"train": "train", "evaluation": f"evaluation ({chosen.eval_name})", "test": "test"}
    accounts = []
    for source in dict.fromkeys(chosen.sources.values()):
        of_it = [part for part, one in chosen.sources.items() if one is source]
        counted = [part for part in of_it if not (part == "evaluation" and holds_out_nothing)]
        used = {named_parts[part]: len(rows[part]) for part in counted if len(rows[part])}
        unusable = [clips[row].path for row in np.flatnonzero(~good & np.isin(part_of, of_it))]
        accounts.append(source.account(used, unusable))
    return RunData(
        made["train"], made["evaluation"], test, labels, chosen.eval_name, notes, chosen.commits, accounts
    )


def kept_samples(
    max_seconds: float | None, sampling_rate: int, min_samples: int, model_max_samples: int | None
) -> tuple[int | None, str]:
    """How many samples of each clip are used (None: all), and the name of the limit for messages."""
    max_samples = None if max_seconds is None else round(max_seconds * sampling_rate)
    if max_samples is not None and max_samples < min_samples:
        shortest = min_samples / sampling_rate
        raise UserError(f"--max-seconds is {max_seconds:g}, less than the model needs, {shortest:g} s.")
    if model_max_samples is not None and (max_samples is None or model_max_samples < max_samples):
        return model_max_samples, f"The model's input of {model_max_samples / sampling_rate:g} s"
    return max_samples, "" if max_seconds is None else f"--max-seconds {max_seconds:g}"


def leave_out_bad(
    waveforms: Waveforms, part_of: np.ndarray, min_samples: int, max_bad_clips: float, notes: list[str]
) -> np.ndarray:
    """bool [clips], which ones can be used; the others are noted, a line each.

    Raises InputsRefused where those are more than `max_bad_clips`, or all of a part of the run.
    """
    errors = dict(waveforms.errors)
    for row, num_samples in enumerate(waveforms.num_samples.tolist()):
        try:
            check_length(num_samples, min_samples, waveforms.sampling_rate)
        except BadAudio as error:
            errors.setdefault(row, str(error))
    rows_of: dict[str, list[int]] = defaultdict(list)  # by why, in the order of the clips
    for row, why in sorted(errors.items()):
        rows_of[why].append(row)
    lines = [
        f"{waveforms.clips[rows[0]].path} {why}" + (f" ({len(rows) - 1} more likewise)" if rows[1:] else "")
        for why, rows in rows_of.items()
    ]
    good = np.ones(len(waveforms.clips), bool)
    good[list(errors)] = False
    of_all = f"{len(errors)} of {len(waveforms.clips)} clips cannot be used"
    first = f"First: {'; '.join(lines[:3])}."
    if rows_of and all(why.endswith(NOT_THERE) for why in rows_of):
        first += " If the audio lies elsewhere, name its folder with --audio-folder."
    for part in PARTS:
        if np.any(part_of == part) and not np.any(good[part_of == part]):
            raise InputsRefused(f"None of the {part} clips can be used, and {of_all}. {first}")
    if len(errors) > max_bad_clips * len(waveforms.clips):
        raise InputsRefused(f"{of_all}, more than --max-bad-clips {max_bad_clips:g} allows. {first}")
    if errors:
        notes += [f"left out: {line}" for line in lines[:MOST_NAMED]]
        notes.append(f"left out in all: {len(errors)} of {len(waveforms.clips)} clips")
    return good


def note_odd(waveforms: Waveforms, good: np.ndarray, notes: list[str]) -> None:
    """Name one of the `good` clips of which what was read may not be all, or whose channels cancel."""
    measured = {row: one for row in np.flatnonzero(good).tolist() if (one := waveforms.measured[row])}
    if partly := [row for row, one in measured.items() if one.notes]:
        first = f"{waveforms.clips[partly[0]].path}: {'; '.join(measured[partly[0]].notes)}"
        notes.append(f"{number_of(len(partly), 'clip')} {FINDINGS['damaged'].words}, such as {first}")
    if cancelled := [row for row, one in measured.items() if one.is_cancelled]:
        first = waveforms.clips[cancelled[0]].path
        how_many = f"{number_of(len(cancelled), 'clip')} {FINDINGS['cancelled'].words}"
        notes.append(f"{how_many}, such as {first}: see --channel")


def trained_too(
    clips: list[Clip],
    rows: dict[str, np.ndarray],
    keys: Sequence[Hashable],
    judged: Sequence[str] = ("evaluation", "test"),
) -> Iterator[tuple[str, list[Clip]]]:
    """Of each part that is `judged`, the clips whose key is that of a training clip, if there are any."""
    trained = {keys[row] for row in rows["train"]} - {None}
    for part in judged:
        if shared := [clips[row] for row in rows[part] if keys[row] in trained]:
            yield part, shared


def two_labels(clips: list[Clip], keys: Sequence[Hashable]) -> list[str]:
    """A note where a file is there under two labels, by whatever names."""
    first: dict[Hashable, Clip] = {}
    pairs = [(first.setdefault(key, clip), clip) for key, clip in zip(keys, clips, strict=True)]
    apart = [
        f"{one.path} ({one.label}) is {clip.path} ({clip.label})"
        for one, clip in pairs
        if one.label != clip.label
    ]
    apart = list(dict.fromkeys(apart))
    return [f"one file under two labels: {named(apart, MOST_EXAMPLES, '; ')}"] if apart else []


def short_segments(config: TrainConfig, waveforms: Waveforms) -> list[str]:
    """A note on the segments that go on, by their row, after their recording has ended.

    Raises UserError where more than half of what they should be is not there.
    """
    names: list[str] = []
    lacking = wanted = 0.0  # seconds
    for row, (clip, seconds) in enumerate(zip(waveforms.clips, waveforms.seconds.tolist(), strict=True)):
        measured = waveforms.measured[row]
        if not isinstance(clip.audio, Segment) or clip.audio.end is None or measured is None:
            continue
        if waveforms.options.trim_silence:
            seconds += measured.silent_ends_seconds  # which were dropped
        length = clip.audio.end - clip.audio.start
        wanted += length
        if length - seconds > SLACK_SECONDS:
            names.append(clip.path)
            lacking += length - seconds
    if lacking > wanted / 2:
        raise UserError(
            f"{config.dataset}: most of what its segments should be lies after the ends of their recordings, "
            f"as of {names[0]}: are start, end and duration in seconds? If they say something else: "
            "--segments no."
        )
    return [short_note(names)] if names else []


def note_cut(waveforms: Waveforms, max_samples: int, limit: str, notes: list[str]) -> None:
    """Say what the `limit` costs: the clips it cuts, and the audio that is not used."""
    sampling_rate = waveforms.sampling_rate
    seconds = waveforms.seconds[waveforms.num_samples > 0]
    kept = np.minimum(seconds, max_samples / sampling_rate)
    cut = np.count_nonzero(seconds * sampling_rate >= max_samples + 1)
    if cut:
        notes.append(
            f"{limit} cuts {cut / len(seconds):.0%} of the clips; "
            f"{1 - kept.sum() / seconds.sum():.0%} of the audio is not used"
        )
