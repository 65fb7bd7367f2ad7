"""A recording in any form -> the pieces of it that are classified: the whole, or windows."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from audiocls.data.audio import (
    MAX_DECODE_SECONDS,
    Decoded,
    DecodeOptions,
    Levels,
    blocks,
    chosen,
    decode,
    mono,
    trimmed,
)
from audiocls.data.clips import Clip, Segment, Span, span_in
from audiocls.data.decoders import open_audio
from audiocls.data.limits import BadAudio, TooLong, check_format, check_length
from audiocls.data.resampling import Waveform, frames_needed, resample, resample_blocks
from audiocls.data.segments import cut
from audiocls.data.silence import SilenceWatch
from audiocls.errors import one_line
from audiocls.findings import FINDINGS, window_note
from audiocls.inference.forms import Encoded, Recording, Sampled, Segments, as_float, audio_of, path_of
from audiocls.inference.windows import first, windows

# What to do with a recording that is too long, in the command line's words and in Python's.
IN_WINDOWS = "classify it in windows with --window 30 (in Python window_seconds=30)"
BEGINNING = "use only its beginning with --max-seconds (max_seconds)"
LONGER = f"{IN_WINDOWS}, raise --max-decode-seconds (max_decode_seconds), or {BEGINNING}"


@dataclass(frozen=True)
class ReadOptions:
    """How a recording is read: rate, limits, channel, windows."""

    rate: int  # the model's sampling rate, in Hz
    min_samples: int  # at that rate
    max_samples: int | None  # at that rate; None: all
    waveform_rate: int | None = None  # of arrays, in Hz
    max_decode_seconds: float = MAX_DECODE_SECONDS  # of a recording that is not read in windows
    channel: str = "mean"  # of several, see data.audio.chosen
    trim_silence: bool = False  # at both ends; not with windows
    windows: tuple[float, float] | None = None  # seconds of each, and from one's start to the next one's
    is_models_window: bool = False  # whether max_samples is what the model takes, and not what was asked for
    # Of memory, what classifying a recording whole takes for each of its samples, and what there is.
    bytes_a_sample: float = 0.0
    free_bytes: float = math.inf

    @property
    def decoding(self) -> DecodeOptions:
        return DecodeOptions(
            self.rate, self.max_samples, self.max_decode_seconds, self.channel, self.trim_silence
        )


@dataclass(frozen=True)
class Prediction:
    """What a recording, or a window of it, was taken for; or why it could not be used."""

    path: str | None  # as given; None for a waveform or bytes
    scores: list[tuple[str, float]]  # (label, score), best first; empty where refused
    error: str | None = None
    start: float | None = None  # of a window, in seconds; None: this is about the whole recording
    end: float | None = None
    num_windows: int | None = None  # whose scores were put together
    true_label: str | None = None  # of a data set's clip
    notes: tuple[str, ...] = ()  # why the scores of the whole recording may mean little

    @property
    def label(self) -> str | None:
        return self.scores[0][0] if self.scores else None

    @property
    def score(self) -> float | None:
        return self.scores[0][1] if self.scores else None


# A Prediction still without scores, and the waveform to score, at the model's rate: None for a recording that
# is refused, and last for one whose windows have come before.
Piece = tuple[Prediction, Waveform | None]


def pieces_of(recording: Recording, options: ReadOptions) -> Iterator[Piece]:
    """The recording's windows, where `options` has windows, and last the whole recording; of Segments each.

    What is wrong with it is the last one's `error`, what is odd its `notes`. Raises UserError where it is no
    recording at all, or an array whose rate is not known.
    """
    if isinstance(recording, Clip) and isinstance(recording.audio, Segment):
        recording = Segments(recording.audio.recording, [recording])
    if isinstance(recording, Segments):
        yield from pieces_of_segments(recording, options)
        return
    silence = SilenceWatch(options.rate)
    true_label = recording.label if isinstance(recording, Clip) else None
    whole = Prediction(path_of(recording), [], true_label=true_label)
    try:
        audio = audio_of(recording, options.waveform_rate)
        if options.windows is None:
            yield from in_one_piece(whole, read(audio, options), options)
            return
        levels = Levels()
        partly: list[str] = []
        used = silence.passing(first(in_blocks(audio, options, levels, partly), options.max_samples))
        yield from in_windows(whole, used, options)
        whole = replace(whole, notes=(*notes_on(levels, silence.is_silent), *partly))
    except BadAudio as error:
        whole = replace(whole, error=reason_of(error))
    except UnicodeEncodeError:
        whole = replace(whole, path=one_line(str(whole.path)), error="has a name that no file can have")
    yield whole, None


def pieces_of_segments(segments: Segments, options: ReadOptions) -> Iterator[Piece]:
    """The pieces of each clip, in the order in which the recording is read, which is done once.

    A segment is held whole, also where it is read in windows: `max_decode_seconds` bounds it.
    """
    clips_of: dict[Span, list[Clip]] = defaultdict(list)
    for clip in segments.clips:
        clips_of[span_in(clip)].append(clip)
    for span, result in cut(segments.recording.read, clips_of, *options.decoding):
        for clip in clips_of[span]:
            whole = Prediction(clip.path, [], true_label=clip.label)
            try:
                if isinstance(result, BadAudio):
                    raise result
                if options.windows is None:
                    yield from in_one_piece(whole, result, options)
                    continue
                silence = SilenceWatch(options.rate)
                silence.listen(result.waveform)
                yield from in_windows(whole, [result.waveform], options)
                odd = notes_on(result.levels, silence.is_silent)
                whole = replace(whole, notes=(*odd, *result.notes))
            except BadAudio as error:
                whole = replace(whole, error=reason_of(error))
            yield whole, None


def in_one_piece(whole: Prediction, decoded: Decoded, options: ReadOptions) -> Iterator[Piece]:
    """The one piece that is the whole recording, with what is odd about it. Raises BadAudio."""
    check_length(len(decoded.waveform), options.min_samples, options.rate)
    check_memory(len(decoded.waveform), options)
    silence = SilenceWatch(options.rate)
    silence.listen(decoded.waveform)
    notes = notes_on(decoded.levels, silence.is_silent)
    if options.is_models_window and decoded.goes_on:
        notes.append(window_note(len(decoded.waveform) / options.rate, decoded.seconds))
    yield replace(whole, notes=(*notes, *decoded.notes)), decoded.waveform


def in_windows(whole: Prediction, used: Iterable[Waveform], options: ReadOptions) -> Iterator[Piece]:
    """The windows of the blocks of a recording that are used. Raises BadAudio."""
    assert options.windows is not None
    for start, window in windows(used, options.rate, *options.windows):
        check_length(len(window), options.min_samples, options.rate)
        end = start + len(window)
        yield replace(whole, start=start / options.rate, end=end / options.rate), window


def reason_of(error: BadAudio) -> str:
    """Why a recording is refused; what to do with one that is too long is not what it is in training."""
    return str(TooLong(error.max_decode_seconds, LONGER) if isinstance(error, TooLong) else error)


def check_memory(num_samples: int, options: ReadOptions) -> None:
    """Raises BadAudio for what, whole, needs more memory than there is."""
    needed = num_samples * options.bytes_a_sample
    if needed > options.free_bytes:
        gigabytes = f"about {needed / 1e9:.1f} GB of memory, and {options.free_bytes / 1e9:.1f} GB are free"
        seconds = num_samples / options.rate
        raise BadAudio(
            f"is too long: whole, its {seconds:.0f} s need {gigabytes}: {IN_WINDOWS}, or {BEGINNING}"
        )


def notes_on(levels: Levels, is_silent: bool) -> list[str]:
    """What training's audit would find in such a recording."""
    found = {
        "silent": is_silent,
        "cancelled": levels.is_cancelled,
        "integer_scale": levels.is_integer_scale,
    }
    return [FINDINGS[kind].note for kind, is_so in found.items() if is_so]


def read(audio: Encoded | Sampled, options: ReadOptions) -> Decoded:
    """What is used of the recording. Raises BadAudio."""
    if isinstance(audio, Sampled) and options.trim_silence:
        whole = from_array(audio, replace(options, max_samples=None), Levels())
        return trimmed(whole, options.rate, options.max_samples)
    if isinstance(audio, Sampled):
        return from_array(audio, options, Levels())
    return decode(audio, *options.decoding)


def in_blocks(
    audio: Encoded | Sampled, options: ReadOptions, levels: Levels, notes: list[str]
) -> Iterator[Waveform]:
    """What is used of the recording and a little more, in blocks; `levels` and `notes` are added to.

    Raises BadAudio.
    """
    if isinstance(audio, Sampled):
        yield from_array(audio, options, levels).waveform
        return
    with open_audio(audio, options.rate) as file:
        used = frames_needed(options.max_samples, file.rate, options.rate)
        yield from resample_blocks(blocks(file, levels, used, options.channel), file.rate, options.rate)
        notes += file.notes


def from_array(audio: Sampled, options: ReadOptions, levels: Levels) -> Decoded:
    """What is used of the waveform; `levels` is added to, and part of it. Raises BadAudio."""
    samples = as_float(audio.samples)
    shape = list(samples.shape)
    if not 1 <= len(shape) <= 2:
        raise BadAudio(f"has shape {shape}: a waveform is [samples] or [samples, channels]")
    channels = 1 if len(shape) == 1 else shape[1]
    if channels > shape[0] > 0:
        raise BadAudio(
            f"has shape {shape}, {channels} channels as [samples, channels]: turn one as torchaudio loads it "
            "(waveform.T), give several as a list (list(waveforms))"
        )
    check_format(audio.rate, channels, options.rate)
    used = int(min(len(samples), frames_needed(options.max_samples, audio.rate, options.rate)))
    one = mono(chosen(samples[:used], options.channel), levels)
    waveform = resample(one, audio.rate, options.rate)[: options.max_samples]
    return Decoded(
        waveform, len(samples) / audio.rate, audio.rate, channels, levels, goes_on=used < len(samples)
    )
