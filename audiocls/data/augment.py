"""Changes to training clips that leave their label true: pure functions of (seed, draw), on raw samples.

To add one, add a function, its name below and in config.AUGMENTATIONS: --augment takes it then.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from audiocls.data.resampling import Waveform, resample

SLOWEST = 90  # percent of a clip's own speed


def speed(waveform: Waveform, sampling_rate: int, generator: np.random.Generator) -> Waveform:
    """Faster or slower by up to 10%, and higher or lower with it, as a tape would be.

    Source: Ko et al. 2015, https://www.danielpovey.com/files/2015_interspeech_augmentation.pdf
    """
    # Few rates, whose filters are short and kept; a copy, as torch warns of an array that is read-only.
    return resample(waveform.copy(), int(generator.choice([SLOWEST, 95, 100, 105, 110])), 100)


def mask(waveform: Waveform, sampling_rate: int, generator: np.random.Generator) -> Waveform:
    """Two bands of frequencies and two stretches of time silenced, each of random width.

    A stretch is up to a tenth of the clip, a band up to a fifth of the mel scale: SpecAugment (Park et al.
    2019, https://arxiv.org/abs/1904.08779) on samples, so that every model can be trained with it.
    """
    spectrum = np.fft.rfft(waveform)
    highest = mels_of(sampling_rate / 2)
    mels = mels_of(np.fft.rfftfreq(len(waveform), 1 / sampling_rate))
    for _ in range(2):
        width = generator.uniform(0, highest / 5)
        low = generator.uniform(0, highest - width)
        spectrum[(mels >= low) & (mels < low + width)] = 0
    masked = np.fft.irfft(spectrum, len(waveform)).astype(np.float32)
    for _ in range(2):
        length = generator.integers(0, len(waveform) // 10 + 1)
        start = generator.integers(0, len(waveform) - length + 1)
        masked[start : start + length] = 0
    return masked


def mels_of(hertz: Any) -> Any:
    """A pitch on the mel scale (O'Shaughnessy 1987)."""
    return 2595 * np.log10(1 + hertz / 700)


AUGMENTATIONS: dict[str, Callable[[Waveform, int, np.random.Generator], Waveform]] = {
    "speed": speed,
    "mask": mask,
}


@dataclass(frozen=True)
class Augmentation:
    """Does what `names` say, in their order, to the clip of a draw."""

    names: tuple[str, ...]  # of AUGMENTATIONS
    seed: int
    sampling_rate: int  # Hz
    min_samples: int  # that the model needs

    def __call__(self, waveform: Waveform, draw: int) -> Waveform:
        """float32 [samples] -> float32 [other samples], a function of (seed, draw) alone."""
        # The 1 keeps it apart from SpecAugment, which draws from [seed, draw].
        generator = np.random.default_rng([self.seed, draw, 1])
        changed = waveform
        for name in self.names:
            changed = AUGMENTATIONS[name](changed, self.sampling_rate, generator)
        return changed if len(changed) >= self.min_samples else waveform

    def most_samples(self, num_samples: np.ndarray) -> np.ndarray:
        """int64 [clips]: how long clips of so many samples can become."""
        return -(-num_samples * 100 // SLOWEST) if "speed" in self.names else num_samples
