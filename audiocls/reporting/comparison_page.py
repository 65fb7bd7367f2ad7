"""A comparison as text and as a page."""

import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

from audiocls.errors import number_of
from audiocls.reporting import figures
from audiocls.reporting.comparison import TITLES, with_interval
from audiocls.reporting.pages import render


def with_deviation(setting: dict[str, Any], metric: str) -> str:
    """`97.9 ±0.4`: the mean over runs in hundredths, and the standard deviation; of the loss as it is."""
    mean, deviation = setting["mean"][metric], setting["deviation"].get(metric)
    shown = (lambda value: f"{value:.3f}") if metric == "loss" else (lambda value: f"{100 * value:.1f}")
    return shown(mean) + ("" if deviation is None else f" ±{shown(deviation)}")


def in_lines(comparison: dict[str, Any]) -> list[str]:
    """The comparison as text."""
    settings, found = comparison["settings"], comparison["differences"]
    lines = [f"{one['name']}: {one['title']} ({number_of(len(one['runs']), 'run')})" for one in settings]
    header = ["", *TITLES.values()]
    means = [
        [one["name"], *(with_deviation(one, name) for name in TITLES), f"{one['minutes']:.1f}"]
        for one in settings
    ]
    differing = [
        [f"{one['second']} - {one['first']}", *(with_interval(one["scores"][name], name) for name in TITLES)]
        for one in found
    ]
    lines += aligned([[*header, "minutes"], *means])
    if found:
        lines += aligned([header, *differing])
    for one in found:
        lines.append(one["verdict"])
        lines += [f"  McNemar's exact test, {mcnemar_text(one, test)}" for test in one["mcnemar"]]
    return [*lines, *(f"note: {note}" for note in comparison["notes"])]


def aligned(rows: list[list[str]]) -> list[str]:
    """The rows of a table, its columns as wide as they need."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def mcnemar_text(one: dict[str, Any], test: dict[str, Any]) -> str:
    """`seed 42: right by A alone 3 clips, by B alone 9: p = 0.146`"""
    seeds = " and ".join(map(str, dict.fromkeys(test["seeds"])))
    return (
        f"seed {seeds}: right by {one['first']} alone {number_of(test['only_first'], 'clip')}, "
        f"by {one['second']} alone {test['only_second']}: p = {test['p']:.2g}"
    )


def page(comparison: dict[str, Any], folder: Path) -> str:
    """The comparison as an HTML page, which will lie in `folder`."""
    settings, found, metric = comparison["settings"], comparison["differences"], comparison["metric"]
    scale, unit = (1, "loss") if metric == "loss" else (100, f"{TITLES[metric]}, %")
    scores = [[scale * run["scores"][metric] for run in one["runs"]] for one in settings]
    of_metric = [one["scores"][metric] for one in found]
    spans = [(*(scale * one[key] for key in ("mean", "low", "high")), one["is_clear"]) for one in of_metric]
    less_first = [f"{one['second']} - {one['first']}" for one in found]
    charts = {"Each run, and the mean": figures.dots([one["name"] for one in settings], scores, unit)}
    if found:
        charts["Differences, with 95% intervals"] = figures.intervals(less_first, spans, unit)
    return render(
        "comparison.html",
        title=f"{number_of(len(settings), 'setting')} compared",
        comparison=comparison,
        titles=TITLES,
        reports={
            run["folder"]: f"./{quote(os.path.relpath(run['folder'], folder), errors='replace')}/report.html"
            for one in settings
            for run in one["runs"]
        },
        charts={
            title: figures.to_svg(figure, f"chart{number}", "scores of runs")
            for number, (title, figure) in enumerate(charts.items())
        },
        with_deviation=with_deviation,
        with_interval=with_interval,
        mcnemar_text=mcnemar_text,
    )
