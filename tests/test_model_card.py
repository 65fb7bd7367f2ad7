"""best/README.md: metadata that the Hub can read, numbers that are right, a snippet that runs."""

import contextlib
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import LABELS
from huggingface_hub import ModelCard
from report_helpers import HOSTILE, write_run_folder
from sklearn import metrics as sklearn_metrics

from audiocls.model.backbone import LoadedModel
from audiocls.model.files import save_model
from audiocls.reporting.model_card import model_card, used_seconds, write_model_card
from audiocls.reporting.results import read_run
from audiocls.storage import complete_folder, damage


def edit_run(folder: Path, **changes: object) -> None:
    run = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(run | changes))


def test_the_hub_reads_the_metrics_that_scikit_learn_gives(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run", list("abcdefgh"))
    predictions = read_run(folder).predictions
    assert predictions is not None
    card = ModelCard(model_card(folder))
    data = card.data.to_dict()
    assert data["pipeline_tag"] == "audio-classification"
    assert data["library_name"] == "transformers"
    assert "base_model" not in data  # tiny is none on the Hub
    assert "datasets" not in data
    results = {result.metric_type: result for result in card.data.eval_results}
    true, predicted = predictions.labels, predictions.predicted
    accuracy = sklearn_metrics.accuracy_score(true, predicted)
    assert results["accuracy"].metric_value == pytest.approx(accuracy, abs=1e-6)
    macro_f1 = sklearn_metrics.f1_score(true, predicted, average="macro")
    assert results["f1"].metric_value == pytest.approx(macro_f1, abs=1e-6)
    balanced = sklearn_metrics.balanced_accuracy_score(true, predicted)
    assert results["balanced_accuracy"].metric_value == pytest.approx(balanced, abs=1e-6)
    assert data["metrics"] == list(results) == ["accuracy", "f1", "balanced_accuracy"]
    interval = r"\(95% interval 0\.\d{4} to 0\.\d{4}\)"
    scores = f"accuracy {accuracy:.4f} {interval}, macro F1 {macro_f1:.4f}, balanced accuracy {balanced:.4f}"
    assert re.search(f"{scores}, ", card.text)
    assert {result.dataset_split for result in results.values()} == {"test"}
    columns = sklearn_metrics.precision_recall_fscore_support(true, predicted, zero_division=0)
    for label, precision, recall, f1, support in zip("abcdefgh", *columns, strict=True):
        assert f"| {label} | {precision:.3f} | {recall:.3f} | {f1:.3f} | {support} |" in card.text


def test_it_says_what_was_trained_on(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run", list("ab"), max_seconds=15.0)
    card = model_card(folder)
    assert "| clips in a step | 32 |" in card and "on the first 15 s of each clip" in card
    (folder / "audit.json").write_text(json.dumps({"seconds": {"window": 4.0}}))
    assert used_seconds(read_run(folder)) == 4.0  # the model takes no more


def test_names_on_the_hub_are_linked_and_paths_are_not_told(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run", ["a", "b"])
    config = json.loads((folder / "run.json").read_text())["config"]
    config |= {"model": "facebook/wav2vec2-base", "dataset": "PolyAI/minds14", "dataset_config": "en-US"}
    edit_run(folder, config=config, hub_commits={"PolyAI/minds14": "abc"})
    data = ModelCard(model_card(folder)).data
    assert data.base_model == "facebook/wav2vec2-base"
    assert data.datasets == ["PolyAI/minds14"]
    assert {result.dataset_type for result in data.eval_results} == {"PolyAI/minds14"}
    assert {result.dataset_revision for result in data.eval_results} == {"abc"}

    config |= {"model": "/home/me/secret/model", "dataset": "/home/me/secret/clips.csv"}
    edit_run(folder, config=config | {"push_to_hub": "me/clips"}, hub_commits={})
    card = model_card(folder)
    assert "secret" not in card
    assert "clips.csv" in card
    assert 'model="me/clips"' in card


def test_no_name_can_act(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run", list(HOSTILE))
    config = json.loads((folder / "run.json").read_text())["config"] | {"dataset": HOSTILE[3] + HOSTILE[4]}
    edit_run(folder, config=config, evaluation_is=HOSTILE[0], device=HOSTILE[1])
    text = model_card(folder)
    text.encode()  # no lone surrogate
    assert not [c for c in text if not c.isprintable() and c != "\n"]
    card = ModelCard(text)
    assert card.data.to_dict()["pipeline_tag"] == "audio-classification"
    body = re.sub(r"```python.*?```", "", card.text, flags=re.DOTALL).replace(r"\\", "")
    assert "<" not in body
    assert not re.findall(r"(?<!\\)[$`\[*]", body)
    rows = [line for line in body.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {3, 6}  # no cell breaks its table


def test_the_card_is_no_damage_to_the_model(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run", ["a", "b"])
    write_model_card(folder)  # nothing was saved yet: nothing to describe
    assert not (folder / "best").exists()
    with complete_folder(folder / "best", step=20) as unfinished:
        (unfinished / "config.json").write_text("{}")
    write_model_card(folder)
    write_model_card(folder)
    assert damage(folder / "best") is None
    assert (folder / "best" / "README.md").read_text(encoding="utf-8") == model_card(folder)
    names = {path.name for path in (folder / "best").iterdir()}
    assert names == {"README.md", "config.json", "checksums.json"}


def test_the_snippet_runs_and_gives_the_classes(
    build_model: Callable[..., LoadedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_run_folder(tmp_path / "run", list(LABELS))
    save_model(build_model(), folder / "best")
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    soundfile.write("clip.wav", 0.1 * generator.standard_normal((32_000, 2)), 16_000)
    snippet = re.search(r"```python\n(.*?)```", model_card(folder), re.DOTALL)
    assert snippet is not None
    assert "waveform[: round(1.0 * sampling_rate)]" in snippet[1]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(snippet[1], {})
    scores = eval(printed.getvalue())
    assert {score["label"] for score in scores} == set(LABELS)
