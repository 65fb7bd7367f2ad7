"""Templates -> HTML pages of one file each: no script, nothing from elsewhere, and no name can break out."""

import math
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from audiocls.errors import one_line
from audiocls.reporting import figures
from audiocls.reporting.audit import channels, copies_found, copies_where, findings, full_lines, hours, rates
from audiocls.storage import failing_as, write_text
from audiocls.streams import say


def say_audit(audit: dict[str, Any], folder: Path, name: str) -> None:
    """Say everything the audit found, and write it as the page audit-NAME.html in `folder`."""
    for line in full_lines(audit):
        say(line)
    with failing_as(folder):
        folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"audit-{name}.html"
    write_text(path, audit_page(audit))
    say(f"the same as a page: {path}")


def audit_page(audit: dict[str, Any]) -> str:
    return render("audit.html", title=f"Audit of {audit['dataset']}", audit=audit)


def lengths(histogram: dict[str, Any]) -> Markup:
    """The audit's histogram of the recordings' lengths, drawn."""
    figure = figures.histogram(histogram["counts"], histogram["edges"], "seconds")
    return figures.to_svg(figure, "durations", "histogram of the recordings' lengths in seconds")


def percent(share: float, digits: int = 1) -> str:
    return "–" if math.isnan(share) else f"{share:.{digits}%}"


def duration(exact_seconds: float) -> str:
    minutes, seconds = divmod(round(exact_seconds), 60)
    whole_hours, minutes = divmod(minutes, 60)
    if whole_hours:
        return f"{whole_hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def inert(value: Any) -> Any:
    """What a person wrote, on one line and without characters that act; what we drew, as it is."""
    return one_line(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def linking(text: str, flags: Collection[str]) -> Markup:
    """A text in which each of our `flags` that it names leads to where the page shows that setting."""

    def linked(found: re.Match[str]) -> str:
        return f'<a href="#set{found[0]}">{found[0]}</a>' if found[0] in flags else found[0]

    return Markup(re.sub(r"(?<![\w-])--[a-z]+(-[a-z]+)*", linked, str(escape(one_line(text)))))


PAGES = Environment(
    loader=PackageLoader("audiocls.reporting"),
    autoescape=True,
    finalize=inert,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
FILTERS = (percent, hours, duration, rates, channels, copies_where, copies_found, findings, lengths, linking)
PAGES.filters |= {filter.__name__: filter for filter in FILTERS}


def render(template: str, **values: Any) -> str:
    """The page as HTML; every text in it escaped, its control and bidi characters made visible."""
    return PAGES.get_template(template).render(values)
