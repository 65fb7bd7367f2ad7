"""A recording in any form -> the pieces of it that are classified: the whole, or windows."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from audiocls.data.audio import (
    MAX_DECODE_SECONDS,
    BadAudio,
    Decoded,
    Levels,
    blocks,
    check_format,
    check_length,
    decode,
    mono,
    open_audio,
)
from audiocls.data.clips import Clip
from audiocls.data.measures import SilenceWatch
from audiocls.data.resampling import Waveform, frames_needed, resample, resample_blocks
from audiocls.errors import one_line
from audiocls.findings import FINDINGS, window_note
from audiocls.inference.forms import Encoded, Recording, Sampled, as_float, audio_of, path_of
from audiocls.inference.windows import first, windows


@dataclass(frozen=True)
class ReadOptions:
    """How a recording is read: rate, limits, windows."""

    rate: int  # the model's sampling rate, in Hz
    min_samples: int  # at that rate
    max_samples: int | None  # at that rate; None: all
    waveform_rate: int | None = None  # of arrays, in Hz
    max_decode_seconds: float = MAX_DECODE_SECONDS  # of a recording that is not read in windows
    windows: tuple[float, float] | None = None  # seconds of each, and from one's start to the next one's
    is_models_window: bool = False  # whether max_samples is what the model takes, and not what was asked for


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
    """The recording's windows, where `options` has windows, and last the whole recording.

    What is wrong with it is the last one's `error`, what is odd its `notes`. Raises UserError where it is no
    recording at all, or an array whose rate is not known.
    """
    silence = SilenceWatch(options.rate)
    true_label = recording.label if isinstance(recording, Clip) else None
    whole = Prediction(path_of(recording), [], true_label=true_label)
    try:
        audio = audio_of(recording, options.waveform_rate)
        if options.windows is None:
            decoded = read(audio, options)
            check_length(len(decoded.waveform), options.min_samples, options.rate)
            silence.listen(decoded.waveform)
            notes = notes_on(decoded.levels, silence.is_silent)
            if options.is_models_window and decoded.goes_on:
                notes.append(window_note(len(decoded.waveform) / options.rate, decoded.seconds))
            yield replace(whole, notes=tuple(notes)), decoded.waveform
            return
        levels = Levels()
        used = silence.passing(first(in_blocks(audio, options, levels), options.max_samples))
        for start, window in windows(used, options.rate, *options.windows):
            check_length(len(window), options.min_samples, options.rate)
            end = start + len(window)
            yield replace(whole, start=start / options.rate, end=end / options.rate), window
        whole = replace(whole, notes=tuple(notes_on(levels, silence.is_silent)))
    except BadAudio as error:
        whole = replace(whole, error=str(error))
    except UnicodeEncodeError:
        whole = replace(whole, path=one_line(str(whole.path)), error="has a name that no file can have")
    yield whole, None


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
    if isinstance(audio, Sampled):
        return from_array(audio, options, Levels())
    return decode(audio, options.rate, options.max_samples, options.max_decode_seconds)


def in_blocks(audio: Encoded | Sampled, options: ReadOptions, levels: Levels) -> Iterator[Waveform]:
    """What is used of the recording and a little more, in blocks; `levels` is added to. Raises BadAudio."""
    if isinstance(audio, Sampled):
        yield from_array(audio, options, levels).waveform
        return
    with open_audio(audio, options.rate) as file:
        used = frames_needed(options.max_samples, file.samplerate, options.rate)
        yield from resample_blocks(blocks(file, levels, used), file.samplerate, options.rate)


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
    waveform = resample(mono(samples[:used], levels), audio.rate, options.rate)[: options.max_samples]
    return Decoded(
        waveform, len(samples) / audio.rate, audio.rate, channels, levels, goes_on=used < len(samples)
    )
