"""Templates -> HTML pages of one file each: no script, nothing from elsewhere, and no name can break out."""

import math
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from audiocls.errors import one_line
from audiocls.reporting import figures
from audiocls.reporting.audit_text import channels, copies_found, copies_where, hours, rates


def render(template: str, **values: Any) -> str:
    """The page as HTML; every text in it escaped, its control and bidi characters made visible."""
    return environment().get_template(template).render(values)


@cache
def environment() -> Environment:
    made = Environment(
        loader=PackageLoader("audiocls.reporting"),
        autoescape=True,
        finalize=inert,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "percent": percent,
        "hours": hours,
        "duration": duration,
        "rates": rates,
        "channels": channels,
        "copies_where": copies_where,
    }
    return made


def inert(value: Any) -> Any:
    """What a person wrote, on one line and without characters that act; what we drew, as it is."""
    return one_line(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def svg(figure: Figure, name: str, describe: str) -> Markup:
    """A figure for a page. `name` is its own on that page; `describe` is ours, never a name from the data."""
    return Markup(figures.to_svg(figure, name, describe))


def audit_page(audit: dict[str, Any]) -> str:
    return render("audit.html", title=f"Audit of {audit['dataset']}", **audit_parts(audit))


def audit_parts(audit: dict[str, Any]) -> dict[str, Any]:
    """What the audit's part of a page shows."""
    histogram = audit["seconds"]["histogram"]
    sizes = audit["classes"]["train"]
    largest = max(sizes.values())
    return {
        "audit": audit | {"copies_found": copies_found(audit["copies"])},
        "durations": svg(
            figures.histogram(histogram["counts"], histogram["edges"], "seconds"),
            "durations",
            "histogram of the recordings' lengths in seconds",
        ),
        "sizes": sorted(((name, size / largest) for name, size in sizes.items()), key=lambda one: -one[1]),
    }


def percent(share: float, digits: int = 1) -> str:
    return "–" if math.isnan(share) else f"{share:.{digits}%}"


def duration(exact_seconds: float) -> str:
    minutes, seconds = divmod(round(exact_seconds), 60)
    whole_hours, minutes = divmod(minutes, 60)
    if whole_hours:
        return f"{whole_hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
