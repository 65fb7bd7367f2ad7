"""A clip's waveform over its seconds, as a few lines of SVG: matplotlib's drawing would be much larger."""

from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from audiocls.reporting.results import Sound

POINTS = 240  # of a waveform's outline
MOST_UNUSED = 0.5  # of what is used: more of a long clip's rest is not drawn
SLACK_SECONDS = 0.05  # within which a clip counts as used whole


@dataclass(frozen=True)
class Drawing:
    """What the page draws, its x in units of which `outline` has POINTS."""

    outline: Markup  # an SVG path, 1 to each side of 0
    width: float
    ticks: list[tuple[float, str]]  # x, seconds
    used: float  # where what the model was given ends, at most `width`
    words: str  # `1.2 s`, or how much of the clip was used


def drawing_of(sound: Sound) -> Drawing:
    """The waveform that was kept, and how far the clip goes on: used but not kept, or not used."""
    kept = max(sound.seconds, 1e-3)
    whole, used = max(sound.clip_seconds, kept), max(sound.used_seconds, kept)
    is_whole = whole - used < SLACK_SECONDS
    seconds = min(used if is_whole else whole, (1 + MOST_UNUSED) * kept)
    scale = POINTS / kept
    return Drawing(
        Markup(outline(sound.waveform)),  # ours, and longer than a line of anybody's
        seconds * scale,
        [(tick * scale, f"{tick:g}") for tick in ticks(seconds)],
        min(used, seconds) * scale,
        in_seconds(used) if is_whole else f"the first {in_seconds(used)} of {in_seconds(whole)} used",
    )


def in_seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"


def ticks(seconds: float) -> list[float]:
    """Round seconds from 0 on, up to seven, evenly apart."""
    found = MaxNLocator(nbins=6, steps=[1, 2, 5, 10]).tick_values(0, seconds)
    return [round(float(tick), 6) for tick in found if tick <= seconds]


def outline(waveform: np.ndarray) -> str:
    """An SVG path around a waveform, POINTS wide and 1 to each side of 0, its peak at 0.95."""
    stretches = np.array_split(waveform, min(POINTS, len(waveform)))
    scale = 0.95 / max(float(np.abs(waveform).max()), 1e-9)
    width = POINTS / len(stretches)
    top = [f"{i * width:.2f} {-scale * float(s.max()) - 0.01:.3f}" for i, s in enumerate(stretches)]
    bottom = [f"{i * width:.2f} {-scale * float(s.min()) + 0.01:.3f}" for i, s in enumerate(stretches)]
    return f"M{'L'.join(top + bottom[::-1])}Z"
