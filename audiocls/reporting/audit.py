"""What the audit of the data found, in words: a summary at each start, everything for `--audit`."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from audiocls.findings import FINDINGS, Finding
from audiocls.storage import write_json
from audiocls.streams import say

MANY_SILENT = 0.1  # of the clips: then it is probably not they that are wrong


def keep_audit(run_folder: Path, audit: dict[str, Any]) -> None:
    """Write audit.json, for the report."""
    write_json(run_folder / "audit.json", audit)


def say_summary(audit: dict[str, Any]) -> None:
    """Say in a few lines what was found."""
    for line in summary_lines(audit):
        say(line)
    num_clips = sum(part["clips"] for part in audit["parts"].values())
    is_cut = audit["seconds"]["used"] < audit["seconds"]["total"]
    if is_cut and (silent := audit["silent"]["count"]) > MANY_SILENT * num_clips:
        say(f"note: {silent} of {num_clips} clips are silent in what is used of them: see --max-seconds")


def summary_lines(audit: dict[str, Any]) -> list[str]:
    """The classes, how much audio of which kind, and what is odd about it, a line each."""
    found = [f"{one['count']} {finding.words}" for finding, one in findings(audit) if one["count"]]
    found += [copies_text(audit["copies"])] if audit["copies"]["count"] else []
    return [
        classes_text(audit["classes"]["train"]),
        audio_text(audit),
        "audit: " + ("; ".join(found) or "nothing odd, nothing left out, no copies"),
    ]


def full_lines(audit: dict[str, Any]) -> list[str]:
    """Everything the audit found, its clips by name."""
    lines = [
        *(f"note: {note}" for note in audit["notes"]),
        *(f"data: {account}" for account in audit["accounts"]),
        f"{classes_text(audit['classes']['train'])}; always guessing the largest is right in "
        f"{audit['largest_class_share']:.1%}",
        audio_text(audit),
    ]
    for finding, found in findings(audit):
        if found["count"]:
            lines += [f"{found['count']} {finding.words} ({finding.meaning})", *listed(found)]
    lines += [copies_text(audit["copies"]), *listed(copies_found(audit["copies"]))]
    if absent := [finding.words for finding, found in findings(audit) if not found["count"]]:
        lines.append(f"none: {', '.join(absent)}")
    return lines


def findings(audit: dict[str, Any]) -> list[tuple[Finding, dict[str, Any]]]:
    """What is looked for, with the number of clips of which it is so and their names.

    The audit of an older run may not have looked for all of it.
    """
    return [(finding, audit[kind]) for kind, finding in FINDINGS.items() if kind in audit]


def audio_text(audit: dict[str, Any]) -> str:
    """How much audio there is, how long the clips are, and in which format they were recorded."""
    seconds = audit["seconds"]
    return (
        f"audio: {hours(seconds['total'])}, {seconds['used'] / seconds['total']:.0%} of it used; "
        f"{ends_text(seconds)}"
        f"{seconds['shortest']:.2f} to {seconds['longest']:.2f} s a clip, median {seconds['median']:.2f} s; "
        f"{rates(audit['rates'])}; {channels(audit['channels'])}"
    )


def ends_text(seconds: dict[str, Any]) -> str:
    """How much silence there is at the ends of clips: where it is much, or was dropped."""
    ends = seconds.get("silent_ends", 0.0)
    if seconds.get("trimmed"):
        return f"{hours(ends)} of silence at clips' ends dropped; "
    if ends < MANY_SILENT * seconds["used"]:
        return ""
    return f"{ends / seconds['used']:.0%} of that is silence at clips' ends (see --trim-silence); "


def classes_text(sizes: dict[str, int]) -> str:
    """How many classes there are, and the clips to train on of the largest and the smallest."""
    largest, smallest = max(sizes, key=sizes.__getitem__), min(sizes, key=sizes.__getitem__)
    if sizes[largest] == sizes[smallest]:
        return f"classes: {len(sizes)}, each with {sizes[largest]} clips to train on"
    return (
        f"classes: {len(sizes)}, the largest {largest!r} with {sizes[largest]} clips to train on, "
        f"the smallest {smallest!r} with {sizes[smallest]}"
    )


def copies_found(twins: dict[str, Any]) -> dict[str, Any]:
    """The copies as the other findings are: their number, and a text for each group."""
    return {"count": twins["count"], "names": [" = ".join(group) for group in twins["groups"]]}


def listed(found: dict[str, Any]) -> list[str]:
    more = found["count"] - len(found["names"])
    return [f"  {name}" for name in found["names"]] + ([f"  and {more} more"] if more > 0 else [])


def copies_text(twins: dict[str, Any]) -> str:
    return f"{twins['count']} copies of another clip ({copies_where(twins)})"


def copies_where(twins: dict[str, Any]) -> str:
    across = [f"{count} in the {part} set of clips trained on" for part, count in twins["across"].items()]
    return ", ".join([*across, f"{twins['contradicting']} under two labels"])


def rates(values: Iterable[Any]) -> str:
    return ", ".join(f"{int(rate) / 1000:g} kHz" for rate in values)


def channels(values: Iterable[Any]) -> str:
    return ", ".join({"1": "mono", "2": "stereo"}.get(str(n), f"{n} channels") for n in values)


def hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"
