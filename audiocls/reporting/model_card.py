"""best/README.md: the saved model's card, in the Hugging Face Hub's form, made from the run folder alone."""

import html
import json
import os
import re
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from audiocls.errors import one_line
from audiocls.metrics import SCORES
from audiocls.reporting.audit import hours, rates
from audiocls.reporting.results import RunResults, read_run
from audiocls.storage import write_text
from audiocls.tables import FORMATS

SHOWN = (
    "recipe learning_rate epochs max_steps warmup_ratio lr_scheduler weight_decay max_grad_norm "
    "balance_classes label_smoothing max_seconds channel trim_silence cut_window augment head_first freeze "
    "backbone best_metric seed"
).split()


def write_model_card(run_folder: Path) -> None:
    """Write best/README.md, or do nothing where no evaluation gave a best model.

    It is not in best/'s checksums: the model is whole without it, and it is itself complete or absent.
    """
    if (run_folder / "best").is_dir():
        write_text(run_folder / "best" / "README.md", model_card(run_folder))


def model_card(run_folder: Path) -> str:
    """The card: YAML front matter, then Markdown in which no name can act."""
    results = read_run(run_folder)
    config = results.config
    folder = run_folder.resolve()
    folder = folder.parent if results.folds else folder  # the folds' own, in which it is called final/
    name = public_name(config.get("push_to_hub") or folder.name)
    cards = Environment(
        loader=PackageLoader("audiocls.reporting"),
        autoescape=False,  # Markdown: `md` escapes
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    cards.filters |= {
        "md": md,
        "public_name": public_name,
        "hours": hours,
        "rates": rates,
        "of_channel": of_channel,
    }
    text = cards.get_template("model_card.md").render(
        results.run,
        title=name,
        model_name=json.dumps(one_line(config.get("push_to_hub") or str(run_folder / "best"))),
        results=results,
        used_seconds=used_seconds(results),
        metrics=SCORES,
        shown=SHOWN,
    )
    return f"---\n{front_matter(name, results)}\n---\n\n{text}"


def front_matter(name: str, results: RunResults) -> str:
    """The metadata that the Hub reads, as YAML."""
    run, config, scores = results.run, results.config, results.scores
    dataset = hub_name(config["dataset"], run)
    hub_metrics = {metric: score.hub_name or metric for metric, score in SCORES.items()}
    evaluated = [
        EvalResult(
            task_type="audio-classification",
            dataset_type=dataset or "audiofolder",
            dataset_name=public_name(config["dataset"]),
            dataset_config=config["dataset_config"],
            dataset_split=results.predictions.split if results.predictions else None,
            dataset_revision=run["hub_commits"].get(config["dataset"]),
            metric_type=hub_metrics[metric],
            metric_name=SCORES[metric].title,
            metric_value=round(value, 6),
        )
        for metric, value in (scores.values.items() if scores else ())
    ]
    card = ModelCardData(
        library_name="transformers",
        pipeline_tag="audio-classification",
        tags=["audio-classification", "audiocls"],
        base_model=hub_name(config["model"], run),
        datasets=[dataset] if dataset else None,
        metrics=list(hub_metrics.values()),
        model_name=name,
        eval_results=evaluated or None,
    )
    return card.to_yaml().strip()


def used_seconds(results: RunResults) -> float | None:
    """How much of a clip was trained on, at most; None: all."""
    window = results.audit["seconds"].get("window") if results.audit else None
    return min((some for some in (results.config["max_seconds"], window) if some), default=None)


def hub_name(name: str, run: dict[str, Any]) -> str | None:
    """`name` where it is one on the Hub, which then links to it; None for what is here, 'tiny' and 'demo'."""
    is_local = os.path.exists(os.path.expanduser(name)) or name.lower().endswith(tuple(FORMATS))
    looks_so = re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name, re.ASCII) is not None
    return name if name in run["hub_commits"] or (looks_so and not is_local) else None


def public_name(name: str) -> str:
    """What a card that anybody may read says of a path of ours; a name on the Hub stays whole."""
    name = one_line(name)
    is_path = name.count("/") != 1 or name.lower().endswith(tuple(FORMATS))
    return name.rstrip("/").rpartition("/")[2] if is_path else name


def md(value: Any) -> str:
    """A text that Markdown and HTML show as it is."""
    text = "none" if value is None else one_line(str(value))
    return re.sub(r"([\\`*_{}\[\]|~$:@])", r"\\\1", html.escape(text, quote=False))


def of_channel(channel: str) -> str:
    """What makes a waveform, [samples, channels], of the channel that was trained on, in NumPy."""
    number = {"left": 1, "right": 2}.get(channel)
    return ".mean(axis=1)" if channel == "mean" else f"[:, {(number or int(channel)) - 1}]"
