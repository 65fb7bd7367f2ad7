"""What is made of a run when it has ended: the worst errors' sound, the model's card, the report."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from audiocls.data.prepare import RunData
from audiocls.reporting.errors_heard import keep_worst_errors
from audiocls.reporting.results import read_run
from audiocls.reporting.run_log import say
from audiocls.reporting.trackers import Trackers


def wrap_up(run_folder: Path, data: RunData, trackers: Trackers | None) -> None:
    """Write what a person looks at afterwards. The model is saved by now: what fails here is only noted."""
    with noted("the worst errors' sound"):
        keep_worst_errors(run_folder, data)
    with noted("the model's card"):
        from audiocls.reporting.model_card import write_model_card  # jinja2

        write_model_card(run_folder)
    with noted("report.html"):
        from audiocls.reporting.report import write_report  # matplotlib

        say(f"report: {write_report(run_folder)}")
    if trackers and trackers.open:
        with noted("the confusion matrix as an image"):
            track_confusion(run_folder, trackers)


def track_confusion(run_folder: Path, trackers: Trackers) -> None:
    """Give the trackers the confusion matrix that the report shows."""
    from audiocls.reporting import figures

    results = read_run(run_folder)
    if results.predictions and results.scores and results.best_step is not None:
        matrix = figures.confusion(results.scores.confusion, results.predictions.names)
        trackers.image("confusion", figures.to_pixels(matrix, "confusion"), results.best_step)


@contextmanager
def noted(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        say(f"note: {what} could not be made: {type(error).__name__}: {error}")
