"""What may be odd about a recording: from where on it is, and in which words it is said.

Training's audit counts such clips and names them; classifying says it of each recording, as a note.
"""

from typing import NamedTuple

SILENCE_DBFS = -60.0  # a stretch of 20 ms is silent below this root mean square, of full scale
FULL_SCALE = 0.999
CLIPPED_SAMPLES = 3  # in a row at full scale: a peak that was merely made as loud as can be has fewer
# Channels cancel where their mean is so much weaker than they are. The mean of independent channels, and of
# one live channel among dead ones, is by 10 log10(channels): 18 dB for the 64 that there may be. Two of
# opposite polarity lose 20 dB where their gains differ by up to 1.7 dB.
CANCELLED_DB = 20.0
# Of full scale. Floats that were mixed or filtered overshoot it by a few dB, not by 20; and 16-bit integers
# that were kept as floats and stay below 10 are silent, at -70 dBFS.
INTEGER_SCALE = 10.0

MOST_NAMED = 20  # recordings named of each kind; all are counted


class Finding(NamedTuple):
    words: str  # behind a number of clips, or behind a recording's name
    meaning: str

    @property
    def sentence(self) -> str:
        return f"{self.meaning[0].upper()}{self.meaning[1:]}."

    @property
    def note(self) -> str:
        """What is said of one recording."""
        return f"{self.words}: {self.meaning}"


FINDINGS = {
    "left_out": Finding("left out", "did not decode, or too short for the model"),
    "damaged": Finding(
        "damaged or unusual", "damaged, cut off, joined or of several tracks: used as far as they can be read"
    ),
    "silent": Finding(
        "silent in what is used",
        f"nothing of it is above {SILENCE_DBFS:g} dBFS",
    ),
    "mostly_silent": Finding(
        "mostly silent", f"more than half of what is used is below {SILENCE_DBFS:g} dBFS"
    ),
    "clipped": Finding("clipped", f"{CLIPPED_SAMPLES} samples in a row at full scale"),
    "cancelled": Finding(
        "of channels that cancel",
        f"their average, which is used, is quieter than they are by {CANCELLED_DB:g} dB or more: see "
        "--channel",
    ),
    "integer_scale": Finding(
        "at integer scale",
        f"floats beyond {INTEGER_SCALE:g} times full scale, which is 1: divide 16-bit samples by 32768",
    ),
}


def window_note(used_seconds: float, seconds: float) -> str:
    """What is said of a recording of which the model's window takes the first `used_seconds`."""
    used, whole = (f"{round(value, 1):g}" for value in (used_seconds, seconds))
    of = "" if whole == used else f" of {whole} s"  # no file need say how long it is
    return (
        f"longer than the model's window: only the first {used} s{of} are used "
        "(see --window, in Python window_seconds)"
    )
