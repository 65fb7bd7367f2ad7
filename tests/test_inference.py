"""Classifier: the pipeline's scores in any company; what is refused stops nothing."""

import dataclasses
import io
import itertools
import os
import threading
import time
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from architectures import fine_tuned
from test_architectures import LABELS, spread_logits, waveforms
from transformers import pipeline

from audiocls import Classifier, streams
from audiocls.data.clips import Clip, FileAudio, Segment
from audiocls.data.collators import Example
from audiocls.errors import UserError
from audiocls.inference.classifier import POOL_BATCHES, Prediction, batch_limits
from audiocls.inference.forms import as_float, by_recording
from audiocls.inference.reading import RECORDINGS_AHEAD
from audiocls.inference.recordings import pieces_of
from audiocls.inference.scoring import in_order_of
from audiocls.model.files import save_model
from audiocls.streams import quiet_stderr


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved Wav2Vec2 whose scores differ visibly."""
    loaded = fine_tuned("wav2vec2", LABELS)
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
            scores = [score for _, score in prediction.scores]
            assert scores == pytest.approx([one["score"] for one in expected], abs=1e-5)


def test_max_seconds_takes_the_beginning_only(model: Path, files: list[Path], tmp_path: Path) -> None:
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
    assert "is text" in str(predictions[0].error)
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
    classifier.backbone = dataclasses.replace(classifier.backbone, problem_type=problem_type)
    (prediction,) = classifier(waveforms(8_000), sampling_rate=16_000, top_k=3)
    batch = classifier.collate([Example(waveforms(8_000)[0])])
    with torch.inference_mode():
        expected = apply(classifier.model(**batch.inputs)[0])  # type: ignore[operator]
    assert dict(prediction.scores) == pytest.approx(dict(zip(LABELS, expected.tolist(), strict=True)))


def test_a_backbone_without_a_head_is_no_classifier(tmp_path: Path) -> None:
    from architectures import save_backbone

    save_backbone("wav2vec2", tmp_path)
    with pytest.raises(UserError, match="not a fine-tuned classifier"):
        Classifier.from_pretrained(tmp_path)


def test_one_recording_is_as_good_as_a_list_of_one_and_a_waveform_needs_its_rate(
    model: Path, files: list[Path]
) -> None:
    classifier = Classifier.from_pretrained(str(model))
    samples, rate = soundfile.read(files[0], dtype="float32")
    (expected,) = classifier([files[0]])
    assert (expected.label, expected.score) == expected.scores[0]
    for one in (str(files[0]), files[0]):
        assert [prediction.scores for prediction in classifier(one)] == [expected.scores]
    for one in (samples, torch.from_numpy(samples), np.stack([samples, samples], axis=1)):
        (prediction,) = classifier(one, sampling_rate=rate)
        assert dict(prediction.scores) == pytest.approx(dict(expected.scores))
        with pytest.raises(UserError, match="sampling_rate="):
            classifier([one])


@pytest.fixture(scope="module")
def classifier(model: Path) -> Classifier:
    return Classifier.from_pretrained(model, device=torch.device("cpu"))  # type: ignore[arg-type]


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as error:
        call()
    assert "\n" not in str(error.value) and str(error.value).endswith(".")
    return str(error.value)


NO_COUNTS = (0, -1, 2.5, "2", True, float("nan"), float("inf"), [2], np.bool_(True))
NO_SECONDS = (0, -1.0, "2", True, float("nan"), [2], 1j, np.array([1, 2]))


@pytest.mark.parametrize(
    ("name", "values", "allowed"),
    [
        ("top_k", NO_COUNTS, "a whole number above 0, or None for all labels"),
        ("batch_size", (*NO_COUNTS, torch.tensor(2)), "a whole number above 0"),
        ("sampling_rate", (44_100.5, "16k", True, float("inf"), [8_000]), "a whole number, in Hz"),
        ("max_seconds", NO_SECONDS, "seconds, a number above 0, or None for all"),
        ("max_decode_seconds", (*NO_SECONDS, None), "seconds, a number above 0"),
        ("window_seconds", NO_SECONDS, "seconds, a number above 0, or None"),
        ("hop_seconds", NO_SECONDS, "seconds, a number above 0, or None"),
        ("aggregate", ("median", None, 1, ["mean"], np.array(["mean"])), "mean, max, vote"),
    ],
)
def test_an_option_that_means_nothing_is_refused_by_name_with_what_is_allowed(
    name: str, values: tuple, allowed: str, classifier: Classifier
) -> None:
    options = {"window_seconds": 1} if name == "hop_seconds" else {}
    for value in values:
        said = refused(lambda value=value: classifier(["a.wav"], **options | {name: value}))
        assert said.startswith(f"{name} is ") and allowed in said


def test_less_than_the_model_needs_is_refused_before_anything_is_read(classifier: Classifier) -> None:
    assert "max_seconds is 0.01: the model needs 0.025 s" in refused(
        lambda: classifier(["a.wav"], max_seconds=0.01)
    )


def test_whole_floats_and_numpy_s_numbers_are_numbers(classifier: Classifier) -> None:
    clip = waveforms(8_000)[0]
    (expected,) = classifier(clip, sampling_rate=44_100)
    for rate in (44_100.0, np.int32(44_100), np.float32(44_100), np.float64(44_100)):
        (prediction,) = classifier(
            clip, sampling_rate=rate, batch_size=np.int64(2), max_seconds=float("inf"), top_k=5.0
        )
        assert prediction.scores == expected.scores


def test_none_is_all_labels_and_more_than_there_are_are_all(classifier: Classifier) -> None:
    clip = waveforms(8_000)[0]
    for top_k, expected in ((None, 3), (100, 3), (2, 2), (np.int64(1), 1)):
        (prediction,) = classifier(clip, sampling_rate=16_000, top_k=top_k)
        assert len(prediction.scores) == expected


@pytest.mark.parametrize(
    "options",
    [{"device": "gpu"}, {"device": 0}, {"device": None}, {"precision": "float16"}, {"backbone": "theirs"}],
)
def test_an_unknown_device_precision_or_backbone_is_refused(model: Path, options: dict) -> None:
    assert "give" in refused(lambda: Classifier.from_pretrained(model, **options))


# Recordings as other libraries hold them


class Decoder:
    """As torchcodec's AudioDecoder looks."""

    def __init__(self, samples: np.ndarray, rate: int) -> None:
        self.samples, self.rate = samples, rate

    def get_all_samples(self) -> object:
        if not len(self.samples):
            raise RuntimeError("Could not push packet to decoder\nInvalid data")
        return types.SimpleNamespace(data=torch.from_numpy(self.samples)[None], sample_rate=self.rate)


def test_dicts_score_as_in_the_pipeline_alone_in_lists_and_from_generators(
    model: Path, files: list[Path], classifier: Classifier
) -> None:
    theirs = pipeline("audio-classification", model=str(model))
    for path in files:
        samples, rate = soundfile.read(path, dtype="float32")
        forms: list[dict] = [
            {"raw": samples, "sampling_rate": rate},
            {"array": samples, "sampling_rate": rate},
            {"array": torch.from_numpy(samples), "raw": None, "sampling_rate": rate, "path": str(path)},
        ]
        # Theirs takes a tensor, too, but not at the model's own rate.
        expected_of = [theirs(dict(form), top_k=None) for form in forms[:2]]
        for form, expected in zip(forms, [*expected_of, expected_of[0]], strict=True):
            for given in (form, [form], (one for one in [form])):
                (ours,) = classifier(given, top_k=None)
                assert ours.path == form.get("path")
                assert [label for label, _ in ours.scores] == [one["label"] for one in expected]
                scores = [one["score"] for one in expected]
                assert [score for _, score in ours.scores] == pytest.approx(scores, abs=1e-5)
        ours_of_file = dict(classifier(path)[0].scores)
        others: list[tuple[Any, str | None]] = [
            ({"bytes": path.read_bytes(), "path": "a/b.wav"}, "a/b.wav"),
            ({"bytes": path.read_bytes(), "path": None}, None),
            ({"bytes": None, "path": path, "sampling_rate": None}, str(path)),
            ({"array": samples, "sampling_rate": float(rate), "label": 3}, None),
            (Decoder(samples, rate), None),
        ]
        for form, name in others:
            assert [one.path for one in classifier([form, path])] == [name, str(path)]
            assert dict(classifier(form)[0].scores) == pytest.approx(ours_of_file)


def test_a_rate_of_its_own_may_be_said_twice_but_not_two_ways(classifier: Classifier) -> None:
    clip = waveforms(8_000)[0]
    for own in ({"array": clip, "sampling_rate": 8_000}, Decoder(clip, 8_000)):
        assert classifier(own, sampling_rate=8_000)[0].scores == classifier(own)[0].scores
        said = refused(lambda own=own: classifier(own, sampling_rate=16_000))
        assert "8000 Hz" in said and "16000 Hz" in said


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (5, "type int"),
        (None, "type NoneType"),
        ([0.5], "type float"),
        ([None], "type NoneType"),
        (io.BytesIO(b"RIFF"), "type BytesIO: give a path, a file's bytes"),
        ({}, "this one has nothing"),
        ({"audio": {"array": np.zeros(9)}, "label": 1}, "this one has 'audio' (dict), 'label' (int)"),
        ({"array": [0.5, 0.5], "sampling_rate": 16_000}, "'array' (list)"),
        ({"array": [0.5, 0.5], "sampling_rate": 16_000, "path": "a.wav"}, "'array' (list)"),
        ({"bytes": "RIFF", "path": "a.wav"}, "'bytes' (str)"),
        ({"bytes": None, "path": None}, "'bytes' (NoneType)"),
        ({"path": 5}, "'path' (int)"),
        ({"array": np.zeros(9_000)}, "add 'sampling_rate'"),
        ({"array": np.zeros(9_000), "sampling_rate": None}, "sampling_rate is None"),
        ({"raw": np.zeros(9_000), "sampling_rate": "16k"}, "sampling_rate is '16k'"),
        ({"raw": np.zeros(9_000), "sampling_rate": 44_100.5}, "sampling_rate is 44100.5"),
    ],
)
def test_what_is_no_recording_is_refused_in_one_sentence(
    given: Any, words: str, classifier: Classifier
) -> None:
    assert words in refused(lambda: classifier(given))


def test_a_dict_or_decoder_that_cannot_be_used_is_a_row_with_a_reason(classifier: Classifier) -> None:
    given = [
        {"array": np.zeros((1, 8_000)), "sampling_rate": 16_000, "path": "turned.wav"},
        {"array": np.zeros(8_000), "sampling_rate": 0},
        {"bytes": b"no sound", "path": "a.wav"},
        {"path": "none.wav"},
        Decoder(np.zeros(0, np.float32), 16_000),
    ]
    for options in ({}, {"window_seconds": 0.2}):
        turned, no_rate, no_sound, none, broken = classifier(given, **options)
        assert turned.path == "turned.wav" and "waveform.T" in str(turned.error)
        assert "0 Hz" in str(no_rate.error)
        assert no_sound.path == "a.wav" and "is text" in str(no_sound.error)
        assert none.path == "none.wav" and none.error == "is not there"
        assert broken.error == "does not decode: RuntimeError: Could not push packet to decoder"


def test_odd_waveforms_and_names_are_refused_with_a_reason(model: Path) -> None:
    classifier = Classifier.from_pretrained(model)

    def refusal(recording: Any, sampling_rate: int = 16_000) -> str:
        (prediction,) = classifier([recording], sampling_rate=sampling_rate)
        assert prediction.scores == []
        return str(prediction.error)

    clip = np.zeros(8_000, np.float32)
    assert "waveform.T" in refusal(torch.zeros(2, 8_000))  # as torchaudio loads it
    assert "0 Hz" in refusal(clip, sampling_rate=0)
    assert "NUL" in refusal("a\0b.wav")
    assert "no file can have" in refusal("\ud800.wav")
    assert "is text, not audio" in refusal(b"no sound")
    assert "not finite" in refusal(np.append(clip, np.nan))
    assert "no audio" in refusal(clip[:0])
    assert "shorter" in refusal(clip[:10])
    assert "shape []" in refusal(np.zeros(()))
    assert "shape [1, 8000, 1]" in refusal(clip[None, :, None])
    assert "int64" in refusal(clip.astype(int))


def test_waveforms_of_every_kind_score_as_the_file_they_came_from(model: Path, tmp_path: Path) -> None:
    classifier = Classifier.from_pretrained(model)
    soundfile.write(tmp_path / "a.wav", 0.1 * waveforms(8_000)[0], 16_000, subtype="PCM_16")
    (expected,) = classifier([tmp_path / "a.wav"])
    samples = {dtype: soundfile.read(tmp_path / "a.wav", dtype=dtype)[0] for dtype in ("int16", "int32")}
    samples["float64"] = soundfile.read(tmp_path / "a.wav")[0]
    kinds = [*samples.values(), torch.from_numpy(samples["float64"]).requires_grad_()]
    for kind in [*kinds, (tmp_path / "a.wav").read_bytes()]:
        (prediction,) = classifier(kind, sampling_rate=16_000)
        assert dict(prediction.scores) == pytest.approx(dict(expected.scores), abs=1e-6)
    loudness = as_float(samples["int16"])  # it counts for models that do not normalise
    np.testing.assert_array_equal(loudness, samples["float64"].astype(np.float32))


def test_scores_that_are_no_numbers_are_a_refusal(model: Path) -> None:
    classifier = Classifier.from_pretrained(model)
    classifier.model.classifier.bias.data[0] = float("nan")
    predictions = classifier(waveforms(8_000), sampling_rate=16_000, window_seconds=0.2)
    assert len(predictions) == 4
    assert {prediction.error for prediction in predictions} == {"the model's scores are not finite"}


def test_clips_of_a_data_set_keep_their_names_and_labels(model: Path, files: list[Path]) -> None:
    clips = [Clip(f"data/{index}", FileAudio(str(path)), "up") for index, path in enumerate(files)]
    for clip, prediction in zip(clips, Classifier.from_pretrained(model)(clips), strict=True):
        assert (prediction.path, prediction.true_label) == (clip.path, "up")


def test_recordings_are_read_as_they_are_needed(model: Path, files: list[Path]) -> None:
    taken = []

    def endless() -> Iterator[Path]:
        for path in itertools.cycle(files):
            taken.append(path)
            yield path

    predictions = Classifier.from_pretrained(model, device="cpu").stream(endless())
    assert next(predictions).path == str(files[0])
    assert len(taken) == 1  # a batch on a CPU is one recording
    next(Classifier.from_pretrained(model).stream(endless(), batch_size=2))
    assert len(taken) == 1 + 2 * POOL_BATCHES


# On a GPU: batches by their audio, and recordings read while it computes


class FakeGPU(Classifier):
    """Computes on the CPU, with the batches and the reading ahead that a GPU gets."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.is_gpu = True


@pytest.fixture(scope="module")
def fake_gpu(model: Path) -> Classifier:
    return FakeGPU.from_pretrained(model, device="cpu")


def assert_alike(ours: list[Prediction], expected: list[Prediction]) -> None:
    def all_but_scores(prediction: Prediction) -> Prediction:
        return dataclasses.replace(prediction, scores=[])

    assert list(map(all_but_scores, ours)) == list(map(all_but_scores, expected))
    for one, other in zip(ours, expected, strict=True):
        assert dict(one.scores) == pytest.approx(dict(other.scores), abs=1e-5)  # of other batches


@pytest.mark.parametrize(
    "options", [{}, {"window_seconds": 0.3, "hop_seconds": 0.1}, {"max_seconds": 0.7}], ids=str
)
@pytest.mark.parametrize("batch_size", [None, 1, 2, 5])
def test_a_gpu_gives_the_predictions_of_a_cpu(
    batch_size: int | None,
    options: dict,
    files: list[Path],
    tmp_path: Path,
    classifier: Classifier,
    fake_gpu: Classifier,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "text.wav").write_text("this is no sound")
    array = {"array": waveforms(20_000)[0], "sampling_rate": 11_025}
    turned = {"array": np.zeros((1, 9)), "sampling_rate": 8_000}
    recordings = [
        *files,
        tmp_path / "text.wav",
        array,
        *files[::-1],
        "none.wav",
        turned,
        *files * 9,
    ]
    expected = classifier(recordings, batch_size=1, **options)
    # Several pools, and several batches in each.
    monkeypatch.setattr("audiocls.inference.classifier.POOL_SAMPLES", 100_000)
    monkeypatch.setattr("audiocls.inference.classifier.GPU_SECONDS", 2)
    assert_alike(fake_gpu(recordings, batch_size=batch_size, **options), expected)


@pytest.mark.parametrize("options", [{}, {"window_seconds": 0.3, "hop_seconds": 0.1}], ids=str)
def test_a_gpu_gives_segments_the_predictions_of_a_cpu_that_reads_each_alone(
    options: dict, files: list[Path], tmp_path: Path, classifier: Classifier, fake_gpu: Classifier
) -> None:
    soundfile.write(tmp_path / "long.wav", 0.1 * np.concatenate(waveforms(*[30_000] * 4)), 16_000)
    long, generator = FileAudio(str(tmp_path / "long.wav")), np.random.default_rng(0)
    starts = [*generator.uniform(0, 7, 40).round(3).tolist(), 3.0, 3.0, 9.0]  # one twice, one beyond the end
    clips = [Clip(f"long#{start}", Segment(long, start, start + 0.5), "up") for start in starts]
    clips[5:5] = [Clip(str(path), FileAudio(str(path)), "up") for path in files]
    expected = classifier(clips, batch_size=1, **options)
    assert sum(prediction.error is not None for prediction in expected) == 1
    ours = fake_gpu.stream(by_recording(clips), **options)
    assert_alike(list(in_order_of(clips, ours)), expected)


def test_by_default_a_gpu_is_given_batches_of_so_much_audio(
    fake_gpu: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[tuple[int, int]] = []

    def seen(module: object, args: tuple, kwargs: dict) -> None:
        shapes.append(tuple(kwargs["input_values"].shape))

    monkeypatch.setattr("audiocls.inference.classifier.GPU_SECONDS", 3)
    lengths = [*np.random.default_rng(0).integers(1_000, 30_000, 60).tolist(), 70_000]
    with fake_gpu.model.register_forward_pre_hook(seen, with_kwargs=True):
        fake_gpu(waveforms(*lengths), sampling_rate=16_000)
    assert sum(size for size, _ in shapes) == 61
    assert all(size * samples <= 48_000 for size, samples in shapes[:-1])
    assert shapes[-1] == (1, 70_000)
    assert max(size for size, _ in shapes) > 8 and len(shapes) <= 30


def test_how_much_is_computed_at_once() -> None:
    def limits(name: str, batch_size: int | None, is_gpu: bool) -> tuple[int, int | None]:
        return tuple(batch_limits(fine_tuned(name, LABELS).backbone, batch_size, is_gpu))  # type: ignore[return-value]

    for is_gpu in (False, True):
        assert limits("wav2vec2", 8, is_gpu) == (8, None)
    assert limits("wav2vec2", None, is_gpu=False) == (1, None)
    assert limits("wav2vec2", None, is_gpu=True) == (128, 128 * 16_000)
    assert limits("whisper", None, is_gpu=True) == (16, None)


def test_a_gpu_has_the_next_pool_before_the_scores_of_the_last_are_waited_for(fake_gpu: Classifier) -> None:
    events: list[str] = []

    class Recorded(FakeGPU):
        def launch(self, pool: list, limits: Any) -> Callable[[], list]:
            number = f"{len([event for event in events if 'launched' in event])}"
            events.append(f"{number} launched")
            results = super().launch(pool, limits)
            return lambda: events.append(f"{number} waited for") or results()  # type: ignore[func-returns-value]

    recorded = Recorded.__new__(Recorded)
    recorded.__dict__ = fake_gpu.__dict__
    clips = waveforms(*[4_000] * (2 * POOL_BATCHES * 2 + 1))
    assert len(recorded(clips, sampling_rate=16_000, batch_size=2)) == len(clips)
    launched = "0 launched, 1 launched, 0 waited for, 2 launched, 1 waited for, 2 waited for"
    assert ", ".join(events) == launched


@pytest.mark.parametrize("batch_size", [1, 2])
def test_on_a_gpu_an_error_comes_after_the_predictions_that_came_before_it(
    batch_size: int, classifier: Classifier, fake_gpu: Classifier
) -> None:
    clip = {"array": waveforms(4_000)[0], "sampling_rate": 16_000}

    def failing() -> Iterator[dict]:
        yield from [clip] * (2 * POOL_BATCHES * 2 + 3)
        raise LookupError("no more")

    for inputs, kind in ((failing, LookupError), (lambda: [*[clip] * 40, 5, clip], UserError)):
        counts = []
        for either in (classifier, fake_gpu):
            predictions = either.stream(inputs(), batch_size=batch_size)
            with pytest.raises(kind):
                for number, _ in enumerate(predictions, start=1):
                    seen = number
            counts.append(seen)
        assert counts[0] == counts[1] >= 32


def test_while_a_gpu_s_predictions_are_used_nothing_is_read_and_standard_error_is_where_it_was(
    files: list[Path],
    fake_gpu: Classifier,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def slowly(*args: Any) -> Iterator:
        with quiet_stderr():
            time.sleep(0.02)
        yield from pieces_of(*args)

    monkeypatch.setattr("audiocls.inference.classifier.pieces_of", slowly)
    monkeypatch.setattr("audiocls.inference.classifier.reading_threads", lambda: 2)
    predictions = fake_gpu.stream(itertools.cycle(files), batch_size=2)
    for number in range(40):
        next(predictions)
        if number in (0, 31, 32):
            os.write(2, b"%d " % number)
    assert capfd.readouterr().err == "0 31 32 "
    predictions.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read")]


def test_an_interrupt_leaves_no_thread(files: list[Path], fake_gpu: Classifier) -> None:
    def interrupted(module: object, args: object) -> None:
        raise KeyboardInterrupt

    with fake_gpu.model.register_forward_pre_hook(interrupted), pytest.raises(KeyboardInterrupt):
        fake_gpu(files * 20)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read")]


def test_for_a_gpu_a_bounded_number_of_recordings_is_taken_ahead(
    files: list[Path], fake_gpu: Classifier
) -> None:
    taken = []

    def endless() -> Iterator[Path]:
        for path in itertools.cycle(files):
            taken.append(path)
            yield path

    next(fake_gpu.stream(endless(), batch_size=2))
    assert len(taken) <= 2 * 2 * POOL_BATCHES + RECORDINGS_AHEAD
    taken.clear()
    next(fake_gpu.stream(endless(), batch_size=1))
    assert len(taken) == 1


@pytest.mark.parametrize("name", ["data2vec-audio", "wav2vec2-layer-norm", "wav2vec2-bert", "whisper"])
def test_on_a_gpu_other_architectures_are_batched_as_they_can_be(name: str) -> None:
    loaded = fine_tuned(name, LABELS)
    spread_logits(loaded)
    clips = waveforms(*[8_000, 9_000, 8_000, 30_000, 9_000, 12_345] * 5)
    on_cpu, on_gpu = (kind(loaded, torch.device("cpu")) for kind in (Classifier, FakeGPU))
    assert_alike(on_gpu(clips, sampling_rate=16_000), on_cpu(clips, sampling_rate=16_000))


def test_a_lock_that_nobody_gives_back_stops_no_other_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal's exception may come between a lock's taking and the block that gives it back."""
    monkeypatch.setattr(streams, "LONGEST_WAIT_SECONDS", 0.1)
    quiet = streams.QuietStderr()
    quiet.lock.acquire()

    def work() -> bool:
        with quiet():
            return True

    with ThreadPoolExecutor(2) as threads:
        assert all(threads.map(lambda _: work(), range(4)))
