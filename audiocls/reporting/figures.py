"""A run's figures, drawn by matplotlib: as SVG that takes its colours from the page, or as pixels.

Nothing here uses pyplot, so nothing depends on a display or leaves figures open.
"""

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PatchCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from audiocls.errors import one_line

# Stand-ins, each a colour of its own on white; on a page they become its CSS variables.
INK, FAINT, BLUE, ORANGE = "#1b1f24", "#8a9099", "#2f6fde", "#d9730d"
VARIABLES = {INK: "var(--ink)", FAINT: "var(--faint)", BLUE: "var(--blue)", ORANGE: "var(--orange)"}
STYLE = {
    "axes.edgecolor": FAINT,
    "axes.grid": True,
    "axes.labelcolor": FAINT,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "font.size": 8.5,
    "grid.alpha": 0.25,
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "svg.fonttype": "none",  # text stays text, in the page's font
    "text.color": INK,
    "text.parse_math": False,  # a label may hold any number of $
    "xtick.color": FAINT,
    "xtick.labelcolor": FAINT,
    "xtick.major.width": 0.6,
    "ytick.color": FAINT,
    "ytick.labelcolor": FAINT,
    "ytick.major.width": 0.6,
}
MOST_NAMED_CLASSES = 30  # more are drawn without names and numbers
Series = tuple[np.ndarray, np.ndarray]  # steps, values


@contextmanager
def drawing(name: str = "") -> Iterator[None]:
    """Draw in our style. `name` goes into the ids of an SVG that is saved meanwhile."""
    with warnings.catch_warnings(), mpl.rc_context(STYLE | {"svg.hashsalt": name}):
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the page's fonts have more
        yield


def to_svg(figure: Figure, name: str, describe: str) -> Markup:
    """The figure as an `<svg>` element for a page, on which only it is called `name`.

    `describe` says what it shows to who cannot see it, and is ours, never a name from the data.
    """
    file = io.StringIO()
    with drawing(name):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # the same in every figure
    svg = re.sub(r" font-family: [^;\"]*;?", "", svg)  # the page's
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # would hold for the whole page
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, variable)
    head, rest = svg.split(">", 1)
    head = re.sub(r' (width|height|version|xmlns:xlink)="[^"]*"', "", head)
    svg = f'{head} role="img" aria-label="{describe}">{rest}'
    return Markup(svg.replace("xlink:href", "href"))


def to_pixels(figure: Figure, name: str) -> np.ndarray:
    """uint8 [height, width, 3], on white."""
    with drawing(name):
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def axes(width: float = 4.4, height: float = 2.5) -> tuple[Figure, Axes]:
    """Inches, 72 units of the SVG each: a figure is meant to be seen at about 360 pixels and up."""
    figure = Figure(figsize=(width, height))
    return figure, figure.subplots()


@drawing()
def curves(
    lines: dict[str, Series], best_step: int | None = None, *, log: bool = False, from_zero: bool = False
) -> Figure:
    """Values over optimizer steps. Of several lines the last stands out; the best step is marked on it."""
    *others, last = lines
    dashes = dict(zip(others, cycle(("-", "--", ":", "-."))))
    figure, ax = axes()
    for name, (steps, values) in lines.items():
        few = np.isfinite(values).sum() < 25
        dash, colour = dashes.get(name, "-"), ORANGE if others and name == last else BLUE
        ax.plot(steps, values, dash, color=colour, label=name, marker="o" if few else "", markersize=2.5)
    if best_step is not None:
        steps, values = lines[last]
        ax.axvline(best_step, color=FAINT, linewidth=0.8, linestyle=(0, (3, 3)))
        for value in values[steps == best_step]:
            ax.plot([best_step], [value], "o", color=INK, markersize=4.5, zorder=5)
            is_late = best_step > (steps.min() + steps.max()) / 2
            ax.annotate(
                f"best {value:.3f}",
                (best_step, 1),
                (0, 3),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                ha="right" if is_late else "left",
            )
    if log:
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter("{x:g}")  # log's own are mathtext
        ax.yaxis.set_minor_formatter("")
    else:
        ax.margins(y=0.12)
    if from_zero and 0 < ax.dataLim.y1 < np.inf:  # there is something above 0
        ax.set_ylim(0, 1.1 * ax.dataLim.y1)
    ax.set_xlabel("optimizer step")
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    if len(lines) > 1:
        ax.legend(loc="best")
    return figure


@drawing()
def reliability(confidence: np.ndarray, accuracy: np.ndarray, counts: np.ndarray) -> Figure:
    """Accuracy over confidence, the larger the dot the more clips; on the diagonal, confidence is earned."""
    figure, ax = axes(4.4, 3.4)
    there = counts > 0
    confidence, accuracy, part = confidence[there], accuracy[there], counts[there] / counts.sum()
    ax.plot([0, 1], [0, 1], color=FAINT, linewidth=0.8, linestyle=(0, (3, 3)))
    ax.vlines(confidence, confidence, accuracy, color=ORANGE, linewidth=1.2)
    ax.plot(confidence, accuracy, color=BLUE, linewidth=1, alpha=0.6)
    ax.scatter(confidence, accuracy, 12 + 160 * part, BLUE, zorder=3)
    ax.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xlabel="confidence", ylabel="accuracy")
    return figure


@drawing()
def histogram(counts: Sequence[int], edges: Sequence[float], xlabel: str) -> Figure:
    figure, ax = axes()
    ax.stairs(counts, edges, fill=True, color=BLUE, alpha=0.85)
    ax.set(xlabel=xlabel, ylabel="clips")
    ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    return figure


@drawing()
def dots(names: Sequence[str], values: Sequence[Sequence[float]], xlabel: str) -> Figure:
    """A row for each name, from the top: a dot for each value, and a line at their mean."""
    figure, ax = axes(4.4, 0.8 + 0.4 * len(names))
    for row, some in enumerate(values):
        ax.scatter(some, [row] * len(some), 22, BLUE, alpha=0.75, linewidths=0, zorder=3)
        ax.vlines(np.mean(some), row - 0.28, row + 0.28, color=ORANGE, linewidth=1.6)
    in_rows(ax, names, xlabel)
    return figure


@drawing()
def intervals(names: Sequence[str], spans: Sequence[tuple[float, ...]], xlabel: str) -> Figure:
    """A row for each name, from the top: (mean, low, high, whether it is clear), beside a line at 0."""
    figure, ax = axes(4.4, 0.8 + 0.4 * len(names))
    ax.axvline(0, color=FAINT, linewidth=0.8, linestyle=(0, (3, 3)))
    for row, (mean, low, high, is_clear) in enumerate(spans):
        colour = ORANGE if is_clear else BLUE
        ax.hlines(row, low, high, color=colour, linewidth=2)
        ax.plot([mean], [row], "o", color=colour, markersize=5)
    in_rows(ax, names, xlabel)
    return figure


def in_rows(ax: Axes, names: Sequence[str], xlabel: str) -> None:
    ax.set(xlabel=xlabel, ylim=(len(names) - 0.5, -0.5))
    ax.set_yticks(range(len(names)), [shortened(one_line(name), 28) for name in names])
    ax.tick_params(axis="y", length=0)
    ax.grid(False, axis="y")
    ax.margins(x=0.08)
    ax.xaxis.set_major_locator(MaxNLocator(5))


@drawing()
def confusion(matrix: np.ndarray, names: Sequence[str]) -> Figure:
    """Rows are the true labels; darker is a larger part of the row, so that rare labels show as well."""
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    has_names = len(names) <= MOST_NAMED_CLASSES
    inches = min(7.0, 1.5 + 0.27 * len(names)) if has_names else 7.0
    figure, ax = axes(inches, inches)
    cells = np.argwhere(matrix > 0)
    # Few errors must show too: a cell's opacity rises as the root of its share.
    colours = [
        to_rgba(BLUE if row == column else ORANGE, 0.65 * shares[row, column] ** 0.5) for row, column in cells
    ]
    squares = [Rectangle((column + 0.03, row + 0.03), 0.94, 0.94) for row, column in cells]
    ax.add_collection(PatchCollection(squares, facecolors=colours, linewidths=0))
    ax.set(aspect="equal", xlabel="taken for", ylabel="true", xlim=(0, len(names)), ylim=(len(names), 0))
    ax.grid(False)
    middles = np.arange(len(names)) + 0.5
    if has_names:
        labels = [shortened(one_line(name)) for name in names]
        ax.set_xticks(middles, labels, rotation=45, ha="right", rotation_mode="anchor")
        ax.set_yticks(middles, labels)
        size = 8 if len(names) <= 15 else 6
        for row, column in cells:
            ax.text(column + 0.5, row + 0.5, str(matrix[row, column]), ha="center", va="center", size=size)
    else:
        tens = [str(number) for number in range(10, len(names) + 1, 10)]
        ax.set_xticks(middles[9::10], tens)
        ax.set_yticks(middles[9::10], tens)
        ax.set(xlabel="taken for (number of the label)", ylabel="true (number of the label)")
    ax.tick_params(length=0)
    return figure


def shortened(name: str, most: int = 18) -> str:
    """Both ends of a long name: names often begin alike."""
    return name if len(name) <= most else f"{name[: most // 2]}…{name[-(most // 2 - 1) :]}"
