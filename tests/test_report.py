"""report.html: right, whole, made from the run folder alone, and inert whatever a label or a path holds."""

import base64
import dataclasses
import io
import json
import re
import shutil
import sys
import unicodedata
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import LABELS, SAMPLING_RATE, Lab
from data_helpers import run_script
from huggingface_hub import ModelCard
from report_helpers import HOSTILE, as_lines, write_run_folder
from sklearn import metrics as sklearn_metrics

from audiocls.config import TrainConfig
from audiocls.data.audit import audit
from audiocls.data.prepare import RunData
from audiocls.errors import InputOutputFailed
from audiocls.inference.classifier import Classifier
from audiocls.inference.scoring import ScoredClips
from audiocls.metrics import SCORES, Score
from audiocls.reporting.audit import keep_audit
from audiocls.reporting.report import report
from audiocls.reporting.results import read_run, read_worst_errors
from audiocls.reporting.wrap_up import an_example, keep_worst_errors, say_end, wrap_up
from audiocls.storage import damage
from audiocls.training.run_folder import remove_run, write_run

MAY_STAND = set(
    "html head meta title style body main header nav section footer div p h1 h2 h3 dl dt dd b i small a "
    "table tr th td figure figcaption details summary ul li span code audio svg g path "
    "defs use text clippath rect".split()
)


# A heading, a setting, our own files, the Hub, a sound.
MAY_LEAD = (
    r"#([\w-]+)?$|[a-z]+(\.jsonl?|\.csv|/)$|errors/\d\d\.flac$|https://huggingface\.co/[\w./-]+$|"
    r"data:audio/flac;base64,"
)

MakeData = Callable[..., RunData]


class Page(HTMLParser):
    """The tags, attributes and text of a page; everything a browser would act on."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.text += data + " "

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def sounds(self) -> list[np.ndarray]:
        """What its players play, float32 [samples] each, at the models' rate."""
        sources = [str(player["src"]) for player in self.attributes("audio")]
        flacs = [base64.b64decode(source.removeprefix("data:audio/flac;base64,")) for source in sources]
        read = [soundfile.read(io.BytesIO(flac), dtype="float32") for flac in flacs]
        assert {rate for _, rate in read} <= {SAMPLING_RATE}
        return [sound for sound, _ in read]


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_no_label_and_no_path_can_act_and_nothing_is_loaded(run_data: MakeData, tmp_path: Path) -> None:
    paths = [HOSTILE[index % len(HOSTILE)] + str(index) for index in range(60)]
    folder = write_run_folder(tmp_path / "run", list(HOSTILE), paths=paths)
    run = json.loads((folder / "run.json").read_text())
    run["config"]["dataset"] = run["evaluation_is"] = run["device"] = HOSTILE[0] + HOSTILE[-1]
    run["hub_commits"] = {HOSTILE[1]: HOSTILE[4]}
    (folder / "run.json").write_text(json.dumps(run))
    found = audit(HOSTILE[0], run_data(24, 12, 12))
    found |= {key: {"count": 9, "names": list(HOSTILE)} for key in ("left_out", "silent", "clipped")}
    found["classes"] = {"train": dict.fromkeys(HOSTILE, 4)}
    found["copies"] |= {"count": 2, "groups": [list(HOSTILE)]}
    (folder / "audit.json").write_text(json.dumps(found))
    html = report(folder)
    page = Page(html)
    assert {tag for tag, _ in page.tags} <= MAY_STAND
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href"):
            assert re.match(MAY_LEAD, attributes.get(name) or "#"), attributes
    html.encode()  # no lone surrogate
    assert not [c for c in html if unicodedata.category(c) in ("Cc", "Cf", "Cs") and c != "\n"]
    assert "49{% raw %}" not in page.text
    for visible in (HOSTILE[0], HOSTILE[1], HOSTILE[2], HOSTILE[3], r"\x00\x07\x1b[31m", r"\u202ereversed"):
        assert visible in page.text
    assert "default-src 'none'" in str(page.attributes("meta"))
    assert not re.findall(r"url\((?!#)|@import", html)  # nothing is loaded from anywhere


@pytest.mark.parametrize("num_labels", [2, 10, 100])
def test_scores_are_those_of_scikit_learn(num_labels: int, tmp_path: Path) -> None:
    labels = [f"label {index}" for index in range(num_labels)]
    folder = write_run_folder(tmp_path / "run", labels, num_clips=3 * num_labels + 40)
    predictions = read_run(folder).predictions
    assert predictions is not None
    true, predicted = predictions.labels, predictions.predicted
    page = Page(report(folder))
    accuracy = sklearn_metrics.accuracy_score(true, predicted)
    macro_f1 = sklearn_metrics.f1_score(true, predicted, average="macro", zero_division=0)
    balanced = sklearn_metrics.balanced_accuracy_score(true, predicted)
    cells = " ".join(page.text.split())
    assert f"accuracy {accuracy:.1%}" in cells
    assert f"macro F1 {macro_f1:.3f} mean over the classes balanced accuracy {balanced:.3f}" in cells
    columns = sklearn_metrics.precision_recall_fscore_support(
        true, predicted, labels=range(num_labels), zero_division=0
    )
    for label, precision, recall, f1, support in zip(labels, *columns, strict=True):
        assert f" {label} {precision:.3f} {recall:.3f} {support} {f1:.3f} " in cells
    assert "loss 0.123" in cells  # the test record's
    assert "best step 20" in cells
    assert "1 h 2 min" in cells


def test_every_confused_pair_is_drawn(tmp_path: Path) -> None:
    """With 100 classes there is no room for numbers, but a square for each pair that occurs."""
    folder = write_run_folder(tmp_path / "run", [f"label {index}" for index in range(100)], num_clips=300)
    scores = read_run(folder).scores
    assert scores is not None
    matrix = re.search(r'<svg[^>]*aria-label="confusion matrix".*?</svg>', report(folder), re.DOTALL)
    assert matrix is not None
    pairs = int((scores.confusion > 0).sum())
    assert len(re.findall(r"fill: var\(--(?:blue|orange)\)", matrix[0])) == pairs


def test_most_confused_pairs_come_in_order(tmp_path: Path) -> None:
    scores = read_run(write_run_folder(tmp_path / "run", list("abcd"), num_clips=200)).scores
    assert scores is not None
    pairs = scores.most_confused(5)
    counts = [count for _, _, count in pairs]
    assert counts == sorted(counts, reverse=True)
    off_diagonal = scores.confusion[~np.eye(4, dtype=bool)]
    assert counts == sorted(off_diagonal.tolist(), reverse=True)[:5]
    assert all(scores.confusion[true, taken] == count and true != taken for true, taken, count in pairs)


def test_a_gradient_norm_over_orders_of_magnitude_is_drawn_on_a_readable_log_scale(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run", ["a", "b"])
    records = lines_of(folder / "metrics.jsonl")
    train = [record for record in records if record["kind"] == "train"]
    for record, norm in zip(train, (0.2, 3.0, 200.0), strict=True):
        record["grad_norm"] = norm
    as_lines(folder / "metrics.jsonl", records)
    chart = re.search(r"<svg[^>]*Gradient norm over.*?</svg>", report(folder), re.DOTALL)
    assert chart is not None
    assert {">1<", ">10<", ">100<"} <= set(re.findall(r">[^<]+<", chart[0]))
    assert "$" not in chart[0]


def test_the_test_set_goes_before_the_evaluation(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run", ["a", "b"], split="evaluation")
    assert "they flatter it" in report(folder)
    predictions = (folder / "predictions.jsonl").read_text()
    test = write_run_folder(tmp_path / "other", ["a", "b"], num_clips=7, seed=1)
    (folder / "predictions.jsonl").write_text(predictions + (test / "predictions.jsonl").read_text())
    assert "they flatter it" not in report(folder)
    assert "on the test set, 7 clips" in " ".join(Page(report(folder)).text.split())


def test_a_clip_whose_numbers_broke_counts_as_an_error(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run", ["a", "b"], num_clips=9)
    lines = lines_of(folder / "predictions.jsonl")
    for line in lines:
        line |= {"label": "b", "probabilities": [0.2, 0.8]}
    lines[3]["probabilities"] = [float("nan")] * 2
    as_lines(folder / "predictions.jsonl", lines)
    scores = read_run(folder).scores
    assert scores is not None
    assert scores.values["accuracy"] == 8 / 9
    assert "Worst errors" in report(folder)


def test_a_run_that_was_stopped_early_has_a_report_too(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run", ["a", "b"])
    (folder / "predictions.jsonl").unlink()
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    for count in (4, 1, 0):
        (folder / "metrics.jsonl").write_text("".join(lines[:count]))
        assert "Settings" in report(folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("run.json", "{}"),
        ("run.json", '{"label2id": {"a": 0, "b": 1}, "config": {}}'),
        ("run.json", "no json"),
        ("run.json", "[" * 100_000),
        ("metrics.jsonl", '{"kind": "train"'),
        ("predictions.jsonl", '{"split": "test", "label": "nobody", "path": "x", "probabilities": [1, 0]}'),
    ],
)
def test_a_damaged_folder_is_refused(name: str, content: str, tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run", ["a", "b"])
    (folder / name).write_text(content)
    with pytest.raises(InputOutputFailed, match=name):
        report(folder)


def test_the_report_needs_no_torch(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run", ["a", "b"])
    code = (
        "import sys, runpy; sys.argv[1:] = [sys.argv[1]];"
        "sys.modules['torch'] = sys.modules['transformers'] = None;"
        "from audiocls.reporting.report import main; main()"
    )
    done = run_script("-c", code, str(folder))
    assert done.returncode == 0, done.stderr
    assert (folder / "report.html").read_text(encoding="utf-8") == report(folder)


# A real run


Finished = Callable[..., Path]


@pytest.fixture
def finished(lab: Lab) -> Finished:
    """finished() -> the folder of a whole run, on lab.data(24, 12, 12) or others, and what is made of it."""

    def make(data: RunData | None = None, **settings: Any) -> Path:
        data = data or lab.data(24, 12, 12)
        loaded, folder = lab.build(), lab.folder / "run"
        folder.mkdir(exist_ok=True)
        settings = {"epochs": 1, "batch_size": 4, "gradient_accumulation_steps": 1} | settings
        config = TrainConfig(dataset="some/clips", device="cpu", **settings)
        write_run(folder, config, data, loaded.backbone, torch.device("cpu"))
        keep_audit(folder, audit(config.dataset, data))
        lab.train("run", loaded, data, with_finish=True, **settings)
        wrap_up(folder, data.sound)
        return folder

    return make


def test_the_report_is_rebuilt_from_the_folder_alone(finished: Finished, tmp_path: Path) -> None:
    folder = finished()
    written = (folder / "report.html").read_text(encoding="utf-8")
    moved = shutil.copytree(folder, tmp_path / "elsewhere" / "run", ignore=lambda *_: ["checkpoints"])
    done = run_script("-m", "audiocls.reporting.report", str(moved))
    assert done.returncode == 0, done.stderr
    assert (moved / "report.html").read_text(encoding="utf-8") == written


@pytest.mark.parametrize("num_test", [0, 12])
def test_the_worst_errors_sound_as_the_model_was_given_them(
    num_test: int, finished: Finished, lab: Lab
) -> None:
    data = lab.data(24, 12, num_test)
    folder = finished(data)
    predictions = read_run(folder).predictions
    assert predictions is not None
    worst = predictions.worst(24)
    own = [predictions.probabilities[index, predictions.labels[index]] for index in worst]
    assert own == sorted(own)
    assert len(worst) == (predictions.predicted != predictions.labels).sum() > 0
    assert damage(folder / "errors") is None
    clips = data.test if num_test else data.evaluation
    assert clips is not None
    sounds = Page((folder / "report.html").read_text(encoding="utf-8")).sounds()
    for sound, index in zip(sounds, worst, strict=True):
        # 1e-4: FLAC holds 16 bits.
        np.testing.assert_allclose(sound, clips[index][0], atol=1e-4)


def test_sound_and_outline_of_an_error_are_whole_however_long(finished: Finished, lab: Lab) -> None:
    folder = finished(lab.data(24, 12, samples=(16_000, 17_000)))
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "characters)" not in page  # what a line of somebody's is cut with
    sounds = Page(page).sounds()
    assert sounds and min(map(len, sounds)) >= 16_000


def test_errors_are_few_and_short(run_data: MakeData, tmp_path: Path) -> None:
    data = run_data(24, 60, samples=(800, 1600))
    rows = [data.evaluation.waveforms.clips[row] for row in data.evaluation.rows]
    folder = write_run_folder(tmp_path / "run", data.labels, num_clips=60, split="evaluation", seed=3)
    lines = lines_of(folder / "predictions.jsonl")
    for line, clip in zip(lines, rows, strict=True):  # always wrong
        at = data.labels.index(clip.label)
        line |= {"label": clip.label, "probabilities": np.roll([0.1, 0.9, 0.0], at).tolist()}
    as_lines(folder / "predictions.jsonl", lines)
    long = np.zeros(20 * SAMPLING_RATE, np.float32)
    keep_worst_errors(folder, lambda split, index: (long, SAMPLING_RATE, 30.0))
    kept = read_worst_errors(folder)
    assert sorted(kept) == list(range(1, 25))
    assert {len(sound.waveform) for sound in kept.values()} == {15 * SAMPLING_RATE}
    # Other predictions than those it was kept for: none of it is shown.
    as_lines(folder / "predictions.jsonl", lines[::-1])
    assert read_worst_errors(folder) == {}
    assert "<audio" not in report(folder)


def test_a_resumed_run_keeps_and_an_overwritten_one_removes_it_all(finished: Finished) -> None:
    folder = finished()
    before = {path.name: path.read_bytes() for path in (folder / "errors").iterdir()}
    card = (folder / "best" / "README.md").read_text(encoding="utf-8")
    finished(resume=True)
    assert {path.name: path.read_bytes() for path in (folder / "errors").iterdir()} == before
    assert (folder / "best" / "README.md").read_text(encoding="utf-8") == card
    assert damage(folder / "best") is None
    remove_run(folder)
    assert list(folder.iterdir()) == []


def test_what_cannot_be_made_is_a_note_and_the_run_goes_on(
    finished: Finished, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "audiocls.reporting.report", None)
    folder = finished()
    assert not (folder / "report.html").exists()
    assert capsys.readouterr().out.count("note: report.html could not be made") == 1


def test_a_metric_is_an_entry_of_scores_and_stands_wherever_scores_do(
    finished: Finished, lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def own(labels: np.ndarray, probabilities: np.ndarray) -> float:
        """Mean probability of the true label: no other score tells it."""
        return float(probabilities[np.arange(len(labels)), labels].mean())

    monkeypatch.setitem(SCORES, "own", Score("own label", own, "mean probability", hub_name="me/own"))
    folder = finished(epochs=2, best_metric="own")
    data = lab.data(24, 12, 12)
    results = read_run(folder)
    end, test, predictions = results.last("end"), results.last("test"), results.predictions
    assert predictions is not None and data.test is not None
    value = own(predictions.labels, predictions.probabilities)
    assert test["own"] == pytest.approx(value, abs=1e-6)  # predictions.jsonl has six digits
    assert end["best_metric"] == "own"
    assert end["best_score"] == max(results.series("eval", "own")[1])

    page = (folder / "report.html").read_text(encoding="utf-8")
    assert f"own label {value:.3f} mean probability" in " ".join(Page(page).text.split())
    chart = re.search(r"<svg[^>]*Evaluation over.*?</svg>", page, re.DOTALL)
    assert chart is not None
    lines = re.findall(rf">({'|'.join(SCORES)}|best [0-9.]+)<", chart[0])
    assert lines == [f"best {end['best_score']:.3f}", *SCORES]  # it is the last line, which bears the mark

    card = ModelCard((folder / "best" / "README.md").read_text(encoding="utf-8"))
    assert f"own label {value:.4f}" in card.text
    assert "me/own" in card.data.to_dict()["metrics"]
    on_the_hub = {result.metric_type: result for result in card.data.eval_results}["me/own"]
    assert (on_the_hub.metric_name, on_the_hub.metric_value) == ("own label", round(value, 6))

    say_end(folder)
    assert re.search(rf"test: .*own {test['own']:.4f} on 12 clips", capsys.readouterr().out)
    classifier = Classifier.from_pretrained(folder, device="cpu")
    scored = ScoredClips(classifier, data.test.clips)
    shown = list(scored.watch(classifier.stream(data.test.clips, top_k=len(LABELS)), top_k=1))
    assert {len(prediction.scores) for prediction in shown} == {1}
    said = re.search(r"own label ([0-9.]+) on 12 clips", "\n".join(scored.lines()))
    assert said is not None
    assert float(said[1]) == pytest.approx(value, abs=1e-4)  # as it is rounded to


def test_the_model_is_to_be_tried_on_a_recording_that_is_whole(tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in ("gone.wav", "cut.wav", "whole.wav")]
    for path in paths[1:]:
        Path(path).touch()
    folder = write_run_folder(tmp_path / "run", list("ab"), num_clips=3, paths=paths)
    assert an_example(read_run(folder)) == paths[1]
    (folder / "audit.json").write_text(json.dumps({"damaged": {"names": [f"{paths[1]}: cut off"]}}))
    assert an_example(read_run(folder)) == paths[2]
    Path(paths[2]).unlink()
    assert an_example(read_run(folder)) == "FILE.wav"


def test_features_lead_to_the_waveforms(run_data: MakeData) -> None:
    """With --cache-features a run holds what the encoder made of the clips."""

    @dataclasses.dataclass
    class Features:
        waveforms: Any
        clips: list

    data = run_data(24, 12, 12)
    behind = Features(data.train.waveforms, data.train.waveforms.clips)
    parts = {
        name: dataclasses.replace(getattr(data, name), waveforms=behind)
        for name in ("train", "evaluation", "test")
    }
    assert audit("clips", dataclasses.replace(data, **parts)) == audit("clips", data)
