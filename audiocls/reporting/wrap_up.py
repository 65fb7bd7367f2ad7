"""What is made of a run when it has ended: the worst errors' sound, the model's card, the report."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from audiocls.data.prepare import RunData
from audiocls.reporting.errors_heard import keep_worst_errors
from audiocls.reporting.run_log import say


def wrap_up(run_folder: Path, data: RunData) -> None:
    """Write what a person looks at afterwards. The model is saved by now: what fails here is only noted."""
    from audiocls.reporting.report import write_report  # matplotlib

    with noted("the worst errors' sound"):
        keep_worst_errors(run_folder, data)
    with noted("report.html"):
        write_report(run_folder)


@contextmanager
def noted(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        say(f"note: {what} could not be made: {type(error).__name__}: {error}")
