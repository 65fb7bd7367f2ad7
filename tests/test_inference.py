"""Classifier and infer.py's output: the pipeline's scores in any company; what is refused stops nothing."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from architectures import CONFIGS, feature_extractor_for
from test_architectures import LABELS, spread_logits, waveforms
from transformers import AutoModelForAudioClassification, pipeline

from audiocls import Classifier
from audiocls.errors import InputOutputFailed, UserError
from audiocls.inference.classifier import Prediction, model_folder
from audiocls.inference.inputs import expand
from audiocls.inference.output import results_file, write_predictions
from audiocls.model.backbone import Backbone, LoadedModel, save_model
from audiocls.storage import complete_folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved Wav2Vec2 whose scores differ visibly."""
    torch.manual_seed(0)
    config = CONFIGS["wav2vec2"]()
    config.id2label, config.label2id = dict(enumerate(LABELS)), {label: id for id, label in enumerate(LABELS)}
    extractor = feature_extractor_for("wav2vec2")
    loaded = LoadedModel(
        AutoModelForAudioClassification.from_config(config).eval(), Backbone("", None, config, extractor)
    )
    spread_logits(loaded)
    folder = tmp_path_factory.mktemp("model")
    save_model(loaded, folder)
    return folder


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = []
    for index, (waveform, rate) in enumerate(
        zip(waveforms(8_000, 12_345, 8_000, 30_000), (8_000, 16_000, 8_000, 44_100), strict=True)
    ):
        paths.append(tmp_path / f"clip {index}.wav")
        soundfile.write(paths[-1], 0.1 * waveform, rate, subtype="FLOAT")
    return paths


def test_files_score_as_in_the_pipeline_in_any_order_and_batch(model: Path, files: list[Path]) -> None:
    classifier = Classifier.from_pretrained(model)
    theirs = pipeline("audio-classification", model=str(model))
    for order in (files, files[::-1], files[1:2], files * 3):
        for prediction, path in zip(classifier(order, batch_size=2, top_k=3), order, strict=True):
            samples, rate = soundfile.read(path, dtype="float32")
            expected = theirs({"raw": samples, "sampling_rate": rate}, top_k=3)
            assert prediction.path == str(path)
            assert [label for label, _ in prediction.scores] == [one["label"] for one in expected]
            assert [score for _, score in prediction.scores] == pytest.approx(
                [one["score"] for one in expected], abs=1e-5
            )


def test_waveforms_need_their_rate_and_give_the_scores_of_their_file(model: Path, files: list[Path]) -> None:
    classifier = Classifier.from_pretrained(str(model))
    samples, rate = soundfile.read(files[0])  # float64
    (from_file,) = classifier([files[0]])
    (from_array,) = classifier([samples], sampling_rate=rate)
    (from_stereo,) = classifier([np.stack([samples, samples], axis=1)], sampling_rate=rate)
    assert dict(from_array.scores) == pytest.approx(dict(from_file.scores))
    assert from_stereo.scores == from_array.scores
    assert (from_array.label, from_array.score) == from_array.scores[0]
    with pytest.raises(UserError, match="sampling_rate="):
        classifier([samples])


def test_max_seconds_hears_the_beginning_only(model: Path, files: list[Path], tmp_path: Path) -> None:
    samples, rate = soundfile.read(files[1], dtype="float32")
    soundfile.write(tmp_path / "cut.wav", samples[: rate // 2], rate, subtype="FLOAT")
    classifier = Classifier.from_pretrained(model)
    (cut,) = classifier([files[1]], max_seconds=0.5)
    (whole,) = classifier([tmp_path / "cut.wav"])
    assert cut.scores == whole.scores


def test_refused_inputs_are_rows_with_a_reason_and_the_rest_goes_on(
    model: Path, files: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "text.wav").write_text("this is no sound")
    soundfile.write(tmp_path / "short.wav", np.zeros(100), 16_000)
    paths = [tmp_path / "text.wav", files[0], tmp_path / "short.wav", tmp_path / "none.wav", files[1]]
    predictions = Classifier.from_pretrained(model)(paths)
    assert [prediction.error is None for prediction in predictions] == [False, True, False, False, True]
    assert "does not decode" in str(predictions[0].error)
    assert "shorter" in str(predictions[2].error)


@pytest.mark.parametrize(
    ("problem_type", "apply"),
    [
        ("single_label_classification", lambda logits: logits.softmax(-1)),
        ("multi_label_classification", torch.sigmoid),
        ("regression", lambda logits: logits),
    ],
)
def test_scores_are_what_the_problem_type_says(model: Path, problem_type: str, apply: object) -> None:
    classifier = Classifier.from_pretrained(model)
    classifier.model.config.problem_type = problem_type
    (prediction,) = classifier(waveforms(8_000), sampling_rate=16_000, top_k=3)
    batch = classifier.collate([(waveforms(8_000)[0], 0)])
    with torch.inference_mode():
        expected = apply(classifier.model(**batch.inputs).logits[0])  # type: ignore[operator]
    assert dict(prediction.scores) == pytest.approx(dict(zip(LABELS, expected.tolist(), strict=True)))


def test_a_run_folder_stands_for_its_best_model_and_damage_is_refused(model: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(UserError, match="holds no model"):
        model_folder(str(run))
    with complete_folder(run / "best", step=1) as unfinished:
        for file in model.iterdir():
            (unfinished / file.name).write_bytes(file.read_bytes())
    assert model_folder(str(run)) == str(run / "best")
    assert model_folder(str(model)) == str(model)
    (run / "best" / "config.json").write_text("{}")
    with pytest.raises(InputOutputFailed, match=r"config\.json is not as it was written"):
        model_folder(str(run))


def test_a_backbone_without_a_head_is_no_classifier(tmp_path: Path) -> None:
    from architectures import save_backbone

    save_backbone("wav2vec2", tmp_path)
    with pytest.raises(UserError, match="not a fine-tuned classifier"):
        Classifier.from_pretrained(tmp_path)


PREDICTIONS = [
    Prediction("a b.wav", [("up", 0.75), ("down", 0.25)]),
    Prediction("bad\n.wav", [], "does not decode: flac decoder lost sync"),
]


def test_jsonl_has_the_contract_s_fields() -> None:
    file = io.StringIO()
    assert write_predictions(PREDICTIONS, "jsonl", 2, file) == 1
    good, bad = map(json.loads, file.getvalue().splitlines())
    scores = [{"label": "up", "score": 0.75}, {"label": "down", "score": 0.25}]
    assert good == {"path": "a b.wav", "label": "up", "score": 0.75, "scores": scores}
    assert bad == {"path": "bad\n.wav", "error": "does not decode: flac decoder lost sync"}


def test_csv_reads_back() -> None:
    file = io.StringIO()
    write_predictions(PREDICTIONS, "csv", 2, file)
    good, bad = csv.DictReader(io.StringIO(file.getvalue()))
    assert (good["path"], good["label"], float(good["score"]), good["label_2"]) == (
        "a b.wav",
        "up",
        0.75,
        "down",
    )
    assert bad["path"] == "bad\n.wav"
    assert bad["error"].startswith("does not decode")


def test_text_keeps_one_line_a_name() -> None:
    file = io.StringIO()
    write_predictions(PREDICTIONS, "text", 2, file)
    assert file.getvalue().splitlines()[:3] == ["a b.wav", "  0.7500  up", "  0.2500  down"]
    assert "refused" in file.getvalue().splitlines()[3]


def test_folders_are_walked_in_order_without_hidden_and_other_files(tmp_path: Path) -> None:
    for name in ("b/2.wav", "b/1.flac", "a.mp3", ".hidden.wav", ".git/3.wav", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()
    expected = [str(tmp_path / name) for name in ("a.mp3", "b/1.flac", "b/2.wav")]
    assert expand([str(tmp_path), "other.txt"]) == [*expected, "other.txt"]
    with pytest.raises(UserError, match="no audio"):
        expand([str(tmp_path / "empty")])


def test_an_output_file_is_complete_or_absent(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), results_file(str(tmp_path / "out.csv")) as file:
        file.write("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with results_file(str(tmp_path / "out.csv")) as file:
        file.write("whole")
    assert (tmp_path / "out.csv").read_text() == "whole"


def test_one_recording_is_as_good_as_a_list_of_one(model: Path, files: list[Path]) -> None:
    classifier = Classifier.from_pretrained(model)
    samples, rate = soundfile.read(files[0], dtype="float32")
    expected = classifier([files[0]])[0].scores
    for one in (str(files[0]), files[0]):
        assert [prediction.scores for prediction in classifier(one)] == [expected]
    for one in (samples, torch.from_numpy(samples)):
        (prediction,) = classifier(one, sampling_rate=rate)
        assert dict(prediction.scores) == pytest.approx(dict(expected))


@pytest.mark.parametrize("options", [{"top_k": 0}, {"batch_size": 0}, {"max_seconds": 0.0}])
def test_options_that_mean_nothing_are_refused(model: Path, options: dict) -> None:
    with pytest.raises(UserError, match="above 0"):
        Classifier.from_pretrained(model)(["a.wav"], **options)


@pytest.mark.parametrize("options", [{"device": "gpu"}, {"precision": "float16"}])
def test_an_unknown_device_or_precision_is_refused(model: Path, options: dict) -> None:
    with pytest.raises(UserError, match="give"):
        Classifier.from_pretrained(model, **options)


def test_odd_waveforms_and_names_are_refused_with_a_reason(model: Path) -> None:
    classifier = Classifier.from_pretrained(model)
    sideways = np.zeros((2, 80_000), np.float32)
    assert "channels" in str(classifier(sideways, sampling_rate=16_000)[0].error)
    assert "0 Hz" in str(classifier(np.zeros(8_000), sampling_rate=0)[0].error)
    assert "NUL" in str(classifier("a\0b.wav")[0].error)


def test_a_name_that_is_not_unicode_reaches_every_format(model: Path, tmp_path: Path) -> None:
    import os

    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.wav")
    soundfile.write(tmp_path / "a.wav", waveforms(8_000)[0], 16_000)
    (tmp_path / "a.wav").rename(path)
    predictions = Classifier.from_pretrained(model)([path])
    for format in ("text", "jsonl", "csv"):
        with results_file(str(tmp_path / format)) as file:
            assert write_predictions(predictions, format, 3, file) == 0
    assert json.loads((tmp_path / "jsonl").read_text())["path"] == path
    assert b"caf\xe9.wav" in (tmp_path / "csv").read_bytes()
