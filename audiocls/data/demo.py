"""The demo data set: ten kinds of synthetic sound, so that a first run needs no download.

Every clip is a pure function of (seed, split, class, index). Pitch, loudness, length and background
noise vary from clip to clip, so that only the *shape* of a sound tells its class.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

Array = npt.NDArray[np.float64]

SAMPLING_RATE = 8_000
CLIPS_PER_CLASS = {"train": 32, "validation": 8, "test": 8}
LABELS = "steady rising falling trill two-tone beeps chord buzz knocks hiss".split()


def _tone(frequency: Array) -> Array:
    """A sine of unit amplitude; `frequency` [samples] is in Hz and may change along the clip."""
    return np.sin(2 * np.pi * np.cumsum(frequency) / SAMPLING_RATE)


def _sound(label: str, seconds: Array, generator: np.random.Generator) -> Array:
    """The bare sound of a class at the times `seconds` [samples], float64 [samples]."""
    uniform = generator.uniform
    pitch = np.full_like(seconds, 400 * 1.5 ** uniform())  # 400 to 600 Hz
    noise = generator.standard_normal(len(seconds))
    match label:
        case "steady":
            return _tone(pitch)
        case "rising":
            return _tone(pitch * uniform(2, 4) ** (seconds / seconds[-1]))
        case "falling":
            return _tone(pitch * uniform(2, 4) ** (1 - seconds / seconds[-1]))
        case "trill":
            swing = np.sin(2 * np.pi * uniform(8, 16) * seconds)
            return _tone(pitch * (1 + uniform(0.15, 0.3) * swing))
        case "two-tone":
            is_low = uniform(2, 5) * seconds % 1 < 0.5
            return _tone(np.where(is_low, pitch, pitch * uniform(1.5, 2.5)))
        case "beeps":
            return _tone(pitch) * (uniform(3, 8) * seconds % 1 < 0.5)
        case "chord":
            return _tone(pitch) + _tone(1.25 * pitch) + _tone(1.5 * pitch)
        case "buzz":
            return 2 * (pitch / 4 * seconds % 1) - 1  # a sawtooth, two octaves down
        case "knocks":
            rate = uniform(3, 8)
            return noise * np.exp(-uniform(20, 40) * (rate * seconds % 1) / rate)
        case "hiss":
            return noise
    raise ValueError(f"no demo class {label!r}")


def _clip(label: str, generator: np.random.Generator) -> npt.NDArray[np.int16]:
    """One clip of 0.5 to 1.2 s, int16 [samples]."""
    seconds = np.arange(round(generator.uniform(0.5, 1.2) * SAMPLING_RATE)) / SAMPLING_RATE
    sound = _sound(label, seconds, generator)
    # Ten-millisecond fades: an abrupt edge is a click, a hint of its own.
    sound = sound / np.abs(sound).max() * np.clip(100 * np.minimum(seconds, seconds[::-1]), 0, 1)
    background = generator.standard_normal(len(seconds)) * 10 ** generator.uniform(-2.5, -0.9)
    waveform = sound + background
    loudness = 10 ** generator.uniform(-1.5, -0.1)  # the peak, of full scale: -30 to -2 dB
    return np.round(32_767 * loudness * waveform / np.abs(waveform).max()).astype(np.int16)


def write_demo(folder: Path, seed: int = 0) -> None:
    """Write `folder/<split>/<class>/<nn>.wav`, the same bytes on every run."""
    for split_index, (split, num_clips) in enumerate(CLIPS_PER_CLASS.items()):
        for label_index, label in enumerate(LABELS):
            (folder / split / label).mkdir(parents=True, exist_ok=True)
            for index in range(num_clips):
                generator = np.random.default_rng([seed, split_index, label_index, index])
                path = folder / split / label / f"{index:02d}.wav"
                soundfile.write(path, _clip(label, generator), SAMPLING_RATE, subtype="PCM_16")
