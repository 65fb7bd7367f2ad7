"""Which recordings are refused, and in which words."""

import math

from audiocls.data.resampling import filter_half_width

MIN_RATE, MAX_RATE = 4_000, 384_000
MAX_CHANNELS = 64
MAX_VALUES_PER_SECOND = 64 * 16_000  # 64 channels at 16 kHz, 10 at 96 kHz, 2 at 384 kHz
MAX_VALUE = 1e6  # of full scale: beyond it, float32 overflows when a model squares and sums
MAX_KERNEL_VALUES = 20_000_000  # of the resampler, 80 MB
# What to do with a recording that is too long to be trained on.
TRAIN_OTHERWISE = "raise --max-decode-seconds, or use only its beginning with --max-seconds"
NOT_THERE = "is not there"


class BadAudio(ValueError):
    """This recording cannot be used; the message says why, without its name."""


class UnreadableAudio(BadAudio):
    """This recording could not be read now, but another time it may."""


class TooLong(BadAudio):
    """This recording is longer than what is decoded at once."""

    def __init__(self, max_decode_seconds: float, otherwise: str = TRAIN_OTHERWISE) -> None:
        self.max_decode_seconds, self.otherwise = max_decode_seconds, otherwise
        super().__init__(f"is longer than {max_decode_seconds:g} s, the most that is decoded: {otherwise}")

    def __reduce__(self) -> tuple:  # from a process that prepares batches
        return TooLong, (self.max_decode_seconds, self.otherwise)


def check_format(rate: int, channels: int, to_rate: int) -> None:
    """Raises BadAudio where a recording of this rate and as many channels cannot be had at `to_rate`."""
    if channels < 1:
        raise BadAudio("has no channels")
    if not MIN_RATE <= rate <= MAX_RATE:
        raise BadAudio(f"has a rate of {rate} Hz, outside {MIN_RATE} to {MAX_RATE} Hz")
    if channels > MAX_CHANNELS:
        raise BadAudio(f"has {channels} channels, more than {MAX_CHANNELS}")
    if channels * rate > MAX_VALUES_PER_SECOND:
        raise BadAudio(f"has {channels} channels at {rate} Hz, too many at such a rate")
    divisor = math.gcd(rate, to_rate)
    # One filter for each of the new rate's phases, as long as the old rate's period and more.
    width = filter_half_width(rate, to_rate)
    if rate != to_rate and (to_rate // divisor) * (2 * width + rate // divisor) > MAX_KERNEL_VALUES:
        convert = f"ffmpeg -i FILE -ar {to_rate} FILE.wav"
        raise BadAudio(f"has a rate of {rate} Hz, too odd beside {to_rate} Hz (convert it: {convert})")


def check_length(num_samples: int, min_samples: int, sampling_rate: int) -> None:
    if num_samples < min_samples:
        milliseconds = 1000 * min_samples / sampling_rate
        raise BadAudio(f"is shorter than what the model needs, {milliseconds:.0f} ms")
