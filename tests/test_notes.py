"""What training says of a recording, classifying says: silent, cancelled, at integer scale, cut."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from architectures import fine_tuned
from conftest import SAMPLING_RATE
from data_helpers import config_for, noise, run_script, write_table
from test_architectures import LABELS, classifier_of

from audiocls.data.audit import audit
from audiocls.data.prepare import prepare_data
from audiocls.findings import FINDINGS, MOST_NAMED
from audiocls.inference.classifier import Classifier, Prediction
from audiocls.inference.output import with_notes
from audiocls.model.files import save_model

RATE = 8_000
SOUND = noise(4_000)
PLANTED = {  # name: float [samples, channels], and what is noted on it
    "sound": (SOUND, []),
    "stereo": (noise(4_000, 2), []),
    "dead channel": (SOUND * [1, 0], []),
    "loud": (9 * SOUND / np.abs(SOUND).max(), []),
    "silent": (0.0005 * np.sign(SOUND), ["silent"]),
    "zeros": (np.zeros((4_000, 2)), ["silent"]),
    "opposite": (SOUND * [1, -1], ["silent", "cancelled"]),
    "nearly opposite": (SOUND * [1, -0.85], ["cancelled"]),
    "partly opposite": (SOUND * [1, -0.7], []),
    "opposite and silent": (0.0005 * np.sign(SOUND) * [1, -1], ["silent"]),
    "integers": (10_000 * SOUND, ["integer_scale"]),
    "opposite integers": (10_000 * SOUND * [1, -0.95], ["cancelled", "integer_scale"]),
}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planted")
    for name, (sound, _) in PLANTED.items():
        soundfile.write(folder / f"{name}.wav", sound, RATE, subtype="FLOAT")
    return folder


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return classifier_of("wav2vec2")


def kinds(prediction: Prediction) -> list[str]:
    """The FINDINGS that the notes are about."""
    assert prediction.error is None
    kind_of = {finding.note: kind for kind, finding in FINDINGS.items()}
    return [kind_of[note] for note in prediction.notes]


@pytest.mark.parametrize("options", [{}, {"window_seconds": 0.2, "hop_seconds": 0.15}, {"batch_size": 3}])
def test_files_bytes_and_arrays_have_the_notes_of_what_was_planted(
    options: dict, planted: Path, classifier: Classifier
) -> None:
    for name, (_, expected) in PLANTED.items():
        path = planted / f"{name}.wav"
        array = soundfile.read(path)[0]
        forms: list[Any] = [path, path.read_bytes(), array, torch.from_numpy(array)]
        for form in forms:
            *windows, whole = classifier(form, sampling_rate=RATE, **options)
            assert kinds(whole) == expected, name
            assert all(window.notes == () for window in windows)


def test_training_finds_in_a_recording_what_classifying_notes_on_it(
    planted: Path, classifier: Classifier, tmp_path: Path
) -> None:
    rows = [[str(planted / f"{name}.wav"), "ab"[index % 2], "train"] for index, name in enumerate(PLANTED)]
    rows += [[row[0], row[1], "validation"] for row in rows]
    manifest = write_table(tmp_path / "clips.csv", ["path", "label", "split"], rows)
    found = audit("clips", prepare_data(config_for(manifest), SAMPLING_RATE, 40))
    for kind in ("silent", "cancelled", "integer_scale"):
        theirs = {Path(name).stem for name in found[kind]["names"]}
        paths = [planted / f"{name}.wav" for name in PLANTED]
        ours = {Path(str(one.path)).stem for one in classifier(paths) if kind in kinds(one)}
        assert ours == theirs == {name for name, (_, expected) in PLANTED.items() if kind in expected}


def test_silent_is_about_what_is_used(classifier: Classifier) -> None:
    late = np.concatenate([np.zeros((8_000, 1)), SOUND])

    def is_silent(**options: float) -> bool:
        return kinds(classifier(late, sampling_rate=RATE, **options)[-1]) == ["silent"]

    assert is_silent(max_seconds=1)
    assert is_silent(max_seconds=1, window_seconds=0.25)
    assert not is_silent() and not is_silent(max_seconds=1.1)
    assert not is_silent(window_seconds=0.25)  # the first four windows are


def test_notes_stay_where_the_scores_are_no_numbers_and_a_refusal_has_none(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    (short,) = classifier(np.zeros(100, np.float32), sampling_rate=RATE)
    assert short.error is not None and short.notes == ()
    monkeypatch.setattr(classifier, "as_scores", lambda logits: logits * np.nan)
    (broken,) = classifier(10_000 * SOUND, sampling_rate=RATE)
    assert broken.error is not None and broken.notes == (FINDINGS["integer_scale"].note,)


# The model's window


@pytest.mark.parametrize(("name", "window"), [("whisper", "2"), ("audio-spectrogram-transformer", "1.3")])
@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_what_the_model_s_window_leaves_out_is_noted(
    name: str, window: str, rate: int, tmp_path: Path
) -> None:
    classifier = classifier_of(name)
    array = noise(round(5.52 * rate))
    soundfile.write(tmp_path / "long.wav", array, rate)

    def notes(**options: float) -> set[tuple[str, ...]]:
        forms: list[Any] = [tmp_path / "long.wav", array]
        return {classifier(form, sampling_rate=rate, **options)[-1].notes for form in forms}

    said = f"only the first {window} s of 5.5 s are used (see --window, in Python window_seconds)"
    whole = {(f"longer than the model's window: {said}",)}
    assert notes() == whole
    assert notes(max_seconds=4) == whole  # the model still takes less
    assert notes(max_seconds=1) == {()}  # as was asked for
    assert notes(window_seconds=1) == {()}  # nothing is left out
    array = array[: rate * 1]
    soundfile.write(tmp_path / "long.wav", array, rate)
    assert notes() == {()}


def test_a_recording_as_long_as_the_model_s_window_has_no_note() -> None:
    classifier = classifier_of("whisper")
    exact, longer = classifier([noise(32_000)[:, 0], noise(32_500)[:, 0]], sampling_rate=16_000)
    assert exact.notes == ()
    assert "first 2 s are used" in longer.notes[0]  # rather than: 2 s of 2 s


# infer.py


def test_each_kind_is_named_so_often_and_then_counted(capsys: pytest.CaptureFixture[str]) -> None:
    silent, loud = (FINDINGS[kind].note for kind in ("silent", "integer_scale"))
    given = [Prediction(f"{index}\n.wav", [], notes=(silent,)) for index in range(MOST_NAMED + 3)]
    given[1:1] = [Prediction("loud.wav", [], notes=(silent, loud)), Prediction("fine.wav", [])]
    assert list(with_notes(given)) == given
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == "" and len(lines) == MOST_NAMED + 2
    assert lines[0] == f"note: 0 .wav: {silent}"
    assert lines.count(f"note: loud.wav: {loud}") == 1
    assert lines[-1] == "note: 4 more silent in what is used"


@pytest.mark.parametrize("options", [(), ("--window", "0.2")])
def test_infer_says_notes_on_stderr_and_in_jsonl_and_nowhere_else(
    options: Sequence[str], planted: Path, classifier: Classifier, tmp_path: Path
) -> None:
    save_model(fine_tuned("wav2vec2", LABELS), tmp_path / "model")
    model = str(tmp_path / "model")
    names = [str(planted / f"{name}.wav") for name in PLANTED]
    expected = {
        name: [FINDINGS[kind].note for kind in noted]
        for name, (_, noted) in zip(names, PLANTED.values(), strict=True)
    }
    noted = {f"note: {name}: {note}" for name, notes in expected.items() for note in notes}
    done = run_script("infer.py", model, *names, "--format", "jsonl", *options)
    assert done.returncode == 0 and set(done.stderr.splitlines()) == noted
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert {line["path"]: line["notes"] for line in lines if "notes" in line} == {
        name: notes for name, notes in expected.items() if notes
    }
    assert not [line for line in lines if "notes" in line and "start" in line]

    manifest = write_table(tmp_path / "clips.csv", ["path", "label"], [[name, LABELS[0]] for name in names])
    for arguments in (names, ("--dataset", str(manifest))):
        for format in ("text", "csv"):
            done = run_script("infer.py", model, *arguments, "--format", format, *options)
            assert done.returncode == 0 and noted <= set(done.stderr.splitlines())
            assert "silent in" not in done.stdout and "note" not in done.stdout
