"""Which clips are trained on, evaluated on and tested on, and what is said about those that are not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from data_helpers import config_for, noise, write_class_folders, write_table, write_wav

from audiocls.config import TrainConfig
from audiocls.data import splits
from audiocls.data.audio import decode
from audiocls.data.division import random_split
from audiocls.data.loader import ClipDataset
from audiocls.data.prepare import RunData, prepare_data
from audiocls.data.sources import Source, load_source
from audiocls.errors import InputsRefused, UserError

RECEPTIVE_FIELD = 400  # samples, 25 ms: that of every Wav2Vec2


def prepare(config: TrainConfig) -> RunData:
    return prepare_data(config, 16_000, RECEPTIVE_FIELD)


def refusal(config: TrainConfig, exit_code: int = 2) -> str:
    with pytest.raises(UserError) as refused:
        prepare(config)
    assert refused.value.exit_code == exit_code
    return str(refused.value)


def names(clips: ClipDataset | None) -> list[str]:
    """`<folder>/<file>` of each clip."""
    assert clips is not None
    return ["/".join(Path(path).parts[-2:]) for path in clips.paths]


def splits_folder(folder: Path, **num_clips: int) -> Path:
    """Folders of splits, `num_clips` of each of two classes."""
    for split, count in num_clips.items():
        write_class_folders(folder / split, {"dog": count, "cat": count})
    return folder


# What is evaluated on, what tested on


def test_without_any_split_a_fraction_of_the_usable_clips_is_evaluated_on_as_the_guide_divides(
    tmp_path: Path,
) -> None:
    folder = write_class_folders(tmp_path / "sounds", {"cat": 30, "dog": 31})
    (folder / "cat" / "00.wav").write_text("no audio")
    data = prepare(config_for(folder, eval_fraction=0.2, seed=7))
    every = [f"cat/{i:02d}.wav" for i in range(1, 30)] + [f"dog/{i:02d}.wav" for i in range(31)]
    train, evaluation = random_split(60, 0.2, 7)
    assert names(data.train) == [every[row] for row in train]
    assert names(data.evaluation) == [every[row] for row in evaluation]
    assert data.test is None
    assert data.eval_name == "held out of train"
    assert data.labels == ["cat", "dog"]
    others = ({"seed": 7}, {"seed": 1}, {"seed": 7, "eval_fraction": 0.5})
    fingerprints = [prepare(config_for(folder, **settings)).fingerprint for settings in others]
    assert fingerprints[0] == data.fingerprint
    assert len(set(fingerprints)) == 3


@pytest.mark.parametrize(
    ("there", "settings", "evaluation", "test", "eval_name"),
    [
        # The evaluation: what is named, else validation, else test, else a part of train.
        ({"validation": 2, "test": 3}, {}, 4, 6, "validation"),
        ({"test": 3}, {}, 6, None, "test"),
        ({"validation": 2}, {}, 4, None, "validation"),
        ({"validation": 2, "test": 3}, {"eval_split": "test"}, 6, None, "test"),
        ({"validation": 2, "other": 5}, {"eval_split": "other"}, 10, None, "other"),
        # The test set: what is named, else test, where it is not evaluated or trained on.
        ({"validation": 2, "other": 5}, {"test_split": "other"}, 4, 10, "validation"),
        ({"test": 3}, {"test_split": "test", "eval_fraction": 0.5}, 10, 6, "held out of train"),
        ({"validation": 2}, {"test_split": "validation", "eval_fraction": 0.5}, 10, 4, "held out of train"),
        # Trained on is what is named, which may be test.
        ({"extra": 5, "test": 2}, {"train_split": "extra"}, 4, None, "test"),
        ({"test": 10}, {"train_split": "test"}, 4, None, "held out of test"),
    ],
)
def test_evaluation_and_test_clips_are_chosen_from_the_splits_there_are(
    tmp_path: Path, there: dict[str, int], settings: dict, evaluation: int, test: int | None, eval_name: str
) -> None:
    folder = splits_folder(tmp_path / "sounds", train=10, **there)
    data = prepare(config_for(folder, **settings))
    assert (len(data.evaluation), data.test and len(data.test), data.eval_name) == (
        evaluation,
        test,
        eval_name,
    )
    parts = [set(part.paths) for part in (data.train, data.evaluation, data.test) if part]
    assert sum(map(len, parts)) == len(set.union(*parts))  # no clip on two sides
    trained_on = ({"train": 10} | there)[settings.get("train_split", "train")]
    held_out = evaluation if "held out" in eval_name else 0
    assert len(data.train) == 2 * trained_on - held_out


def test_other_data_sets_are_evaluated_and_tested_on(tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path / "sounds", {"cat": 4, "dog": 4})
    one = write_class_folders(tmp_path / "one", {"dog": 3})
    splits = splits_folder(tmp_path / "two", train=5, validation=1, test=2)
    data = prepare(config_for(folder, eval_dataset=str(one), test_dataset=str(splits)))
    assert (len(data.train), len(data.evaluation), len(data.test or [])) == (8, 3, 4)
    assert data.eval_name == str(one)
    data = prepare(config_for(folder, eval_dataset=str(splits)))
    assert (len(data.evaluation), data.test) == (2, None)  # its validation, not its train
    data = prepare(config_for(folder, eval_dataset=str(splits), eval_split="train"))
    assert len(data.evaluation) == 10


@pytest.mark.parametrize("flag", ["--train-split", "--eval-split", "--test-split"])
def test_a_split_that_is_not_there_is_told_with_those_that_are(tmp_path: Path, flag: str) -> None:
    folder = splits_folder(tmp_path / "sounds", train=2, test=2)
    message = refusal(config_for(folder, **{flag[2:].replace("-", "_"): "dev"}))
    assert "no split 'dev'" in message
    assert "test, train" in message
    assert flag in message


def test_a_split_in_which_no_clip_has_a_label_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_labels(*arguments: Any, **options: Any) -> Source:  # as a Hub's test split often is
        source = load_source(*arguments, **options)
        source.splits["test"] = []
        return source

    monkeypatch.setattr(splits, "load_source", without_labels)
    folder = splits_folder(tmp_path / "sounds", train=2, test=2)
    assert "'test'" in refusal(config_for(folder, eval_split="test"))


# How train is divided


def manifest_of(folder: Path, *columns: str, rows: list[tuple]) -> Path:
    """Rows whose first cell is the file, one that is written."""
    for number, (name, *_) in enumerate(rows):
        write_wav(folder / name, seed=number)
    return write_table(folder / "clips.csv", ("path", "label", *columns), rows)


def test_groups_divide_where_there_are_two_and_every_clip_has_one(tmp_path: Path) -> None:
    for speakers, says in ((["ann"], "one group"), (["", "bob", "cid"], "3 clips have nothing in")):
        rows = [(f"{i}.wav", "ab"[i % 2], speakers[i % len(speakers)]) for i in range(9)]
        manifest = manifest_of(tmp_path, "speaker", rows=rows)
        assert says in refusal(config_for(manifest, split_by="group", group_column="speaker"))


def test_split_by_stratified_divides_each_class_and_names_those_too_small(tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path / "sounds", {"cat": 20, "dog": 10, "eel": 1})
    data = prepare(config_for(folder, split_by="stratified"))
    assert sorted(Path(name).parts[0] for name in names(data.evaluation)) == ["cat"] * 4 + ["dog"] * 2
    assert "too few clips to divide, all to train on: eel" in data.notes


# Labels


def test_labels_are_numbered_in_their_order_and_every_clip_has_its_own(tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path / "digits", {"10": 2, "9": 2, "1": 2})
    data = prepare(config_for(folder))
    assert data.labels == ["1", "9", "10"]
    for part in (data.train, data.evaluation):
        assert [data.labels[id] for id in part.labels] == [name.split("/")[0] for name in names(part)]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_label_that_is_only_evaluated_is_named(tmp_path: Path, split: str) -> None:
    folder = splits_folder(tmp_path / "sounds", train=3, validation=1, test=1)
    write_class_folders(folder / split, {"emu": 1})
    message = refusal(config_for(folder))
    assert "emu" in message
    assert "cat, dog" in message


def test_one_class_is_refused_with_its_name(tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path / "sounds", {"cat": 5})
    message = refusal(config_for(folder))
    assert "one class, cat" in message
    assert "--label-column" in message


def test_a_label_whose_clips_all_went_to_the_evaluation_is_noted(tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path / "sounds", {"cat": 10, "dog": 1, "emu": 10})
    for seed in range(30):
        _, evaluation = random_split(21, 0.2, seed)
        if 10 in evaluation:  # the only dog
            break
    data = prepare(config_for(folder, seed=seed))
    assert "no clip to train on for: dog" in data.notes
    assert data.labels == ["cat", "dog", "emu"]


def test_too_few_clips_to_divide_are_refused(tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path / "sounds", {"cat": 1, "dog": 1})
    assert "no clips to train on" in refusal(config_for(folder, eval_fraction=0.9))
    assert "--eval-fraction" in refusal(config_for(folder, eval_fraction=0.9))


# Clips that cannot be used


def test_clips_that_do_not_decode_are_left_out_with_a_line_each_and_a_count(tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path / "sounds", {"cat": 30, "dog": 30})
    (folder / "cat" / "03.wav").write_text("no audio")
    (folder / "dog" / "07.wav").write_bytes(b"")
    data = prepare(config_for(folder))
    used = {*data.train.paths, *data.evaluation.paths}
    assert len(used) == 58
    assert not used & {str(folder / "cat" / "03.wav"), str(folder / "dog" / "07.wav")}
    lines = [note for note in data.notes if note.startswith("left out: ")]
    assert len(lines) == 2
    assert lines[0].startswith(f"left out: {folder / 'cat' / '03.wav'} is text, not audio")
    assert "07.wav" in lines[1]
    assert "left out in all: 2 of 60 clips" in data.notes


def test_more_than_a_twentieth_of_bad_clips_ends_the_run_with_3(tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path / "sounds", {"cat": 20, "dog": 20})
    for index in range(2):  # five in a hundred are allowed
        (folder / "cat" / f"{index:02d}.wav").write_text("no audio")
    assert "left out in all: 2 of 40 clips" in prepare(config_for(folder)).notes
    (folder / "cat" / "02.wav").write_text("no audio")
    with pytest.raises(InputsRefused) as refused:
        prepare(config_for(folder))
    message = str(refused.value)
    assert refused.value.exit_code == 3
    assert "3 of 40 clips cannot be used" in message
    assert "--max-bad-clips 0.05" in message
    assert str(folder / "cat" / "00.wav") in message
    assert "\n" not in message
    assert len(prepare(config_for(folder, max_bad_clips=0.1)).train) == 29


def test_no_more_than_twenty_bad_clips_get_a_line_each(tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path / "sounds", {"cat": 30, "dog": 10})
    for index in range(25):
        soundfile.write(folder / "cat" / f"{index:02d}.wav", noise(900), 1_000 + index)
    notes = prepare(config_for(folder, max_bad_clips=1.0)).notes
    assert sum(note.startswith("left out: ") for note in notes) == 20
    assert "left out in all: 25 of 40 clips" in notes


def test_clips_that_cannot_be_used_for_one_reason_are_one_line(tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path / "sounds", {"cat": 30, "dog": 10})
    for index in range(5):
        (folder / "cat" / f"{index:02d}.wav").write_text("no audio")
    notes = prepare(config_for(folder, max_bad_clips=1.0)).notes
    first = folder / "cat" / "00.wav"
    assert [note for note in notes if note.startswith("left out: ")] == [
        f"left out: {first} is text, not audio (4 more likewise)"
    ]


def test_one_clip_that_is_damaged_or_whose_channels_cancel_is_named(tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path / "sounds", {"cat": 10, "dog": 10})
    soundfile.write(folder / "cat" / "00.wav", noise(8_000) * [[1, -1]], 16_000)
    soundfile.write(folder / "dog" / "00.wav", noise(8_000), 16_000)
    content = (folder / "dog" / "00.wav").read_bytes()
    (folder / "dog" / "00.wav").write_bytes(content[: len(content) // 2])
    notes = prepare(config_for(folder)).notes
    cat, dog = folder / "cat" / "00.wav", folder / "dog" / "00.wav"
    assert f"1 clip of channels that cancel, such as {cat}: see --channel" in notes
    assert f"1 clip damaged or unusual, such as {dog}: cut off: 0.2 s of its 0.5 s are there" in notes


@pytest.mark.parametrize("channel", ["left", "right", "2"])
def test_one_channel_is_trained_on(channel: str, tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path / "sounds", {"cat": 5, "dog": 5})
    stereo = noise(8_000, 2)
    soundfile.write(folder / "cat" / "00.wav", stereo, 16_000, subtype="FLOAT")
    data = prepare(config_for(folder, channel=channel))
    for part, clips in data.parts.items():
        for index, path in enumerate(clips.paths):
            if path == str(folder / "cat" / "00.wav"):
                waveform, *_ = data.sound(part, index)
                np.testing.assert_array_equal(waveform, stereo[:, 0 if channel == "left" else 1])


def test_a_clip_shorter_than_the_receptive_field_is_left_out_and_named(tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path / "sounds", {"cat": 30, "dog": 30})
    soundfile.write(folder / "cat" / "00.wav", noise(RECEPTIVE_FIELD - 1), 16_000)
    soundfile.write(folder / "cat" / "01.wav", noise(RECEPTIVE_FIELD), 16_000)
    data = prepare(config_for(folder))
    used = {*data.train.paths, *data.evaluation.paths}
    assert str(folder / "cat" / "00.wav") not in used
    assert str(folder / "cat" / "01.wav") in used
    (line,) = (note for note in data.notes if note.startswith("left out: "))
    assert str(folder / "cat" / "00.wav") in line
    assert "shorter than what the model needs, 25 ms" in line


def test_using_less_than_the_model_needs_is_blamed_on_the_flag_not_on_the_clips(tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path / "sounds", {"cat": 3, "dog": 3})
    assert "--max-seconds" in refusal(config_for(folder, max_seconds=0.01))


def test_test_clips_that_cannot_be_used_are_no_test_set(tmp_path: Path) -> None:
    folder = splits_folder(tmp_path / "sounds", train=30, validation=5)
    for label in ("cat", "dog"):
        (folder / "test" / label).mkdir(parents=True)
        (folder / "test" / label / "a.wav").write_text("no audio")
    with pytest.raises(InputsRefused, match="None of the test clips can be used"):
        prepare(config_for(folder, max_bad_clips=0.5))


# Cutting


def test_what_max_seconds_costs_is_said(tmp_path: Path) -> None:
    for label, seconds in {"cat": 0.1, "dog": 0.1, "emu": 0.4, "fox": 0.2}.items():
        write_class_folders(tmp_path / "sounds", {label: 2}, seconds)
    folder = tmp_path / "sounds"
    # Of 1.6 s in all, 0.8 s are used: 8 times 0.1 s.
    data = prepare(config_for(folder, max_seconds=0.1))
    assert data.notes == ["--max-seconds 0.1 cuts 50% of the clips; 50% of the audio is not used"]
    assert {len(data.train[index][0]) for index in range(len(data.train))} == {1_600}


@pytest.mark.parametrize("max_seconds", [0.1, 0.5, 86_400.0, None])
def test_where_nothing_is_cut_nothing_is_said(tmp_path: Path, max_seconds: float | None) -> None:
    folder = write_class_folders(tmp_path / "sounds", {"cat": 3, "dog": 3})
    assert prepare(config_for(folder, max_seconds=max_seconds)).notes == []


def test_a_prepared_clip_is_what_decode_gives(tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path / "sounds", {"cat": 3, "dog": 3}, seconds=0.2)
    data = prepare(config_for(folder, max_seconds=0.15))
    for index, path in enumerate(data.train.paths):
        waveform = data.train[index].values
        np.testing.assert_array_equal(waveform, decode(Path(path), 16_000, 2_400).waveform)
    assert data.train.num_samples.tolist() == [2_400] * len(data.train)


def test_what_lies_beyond_the_models_window_is_not_used_and_said(tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path / "sounds", {"cat": 3, "dog": 3}, seconds=0.2)
    data = prepare_data(config_for(folder, max_seconds=None), 16_000, 400, 1_600)
    assert data.notes == ["The model's input of 0.1 s cuts 100% of the clips; 50% of the audio is not used"]
    assert len(data.train[0][0]) == 1_600


def test_clips_that_are_trained_on_and_tested_with_are_said(tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path / "sounds", {"cat": 3, "dog": 3})
    data = prepare(config_for(folder, test_dataset=str(folder)))
    (note,) = data.notes
    assert note.startswith("4 of the test clips are trained on too: their scores flatter the model (/")


def test_split_folders_may_be_capitalised(tmp_path: Path) -> None:
    for split in ("Train", "Test"):
        write_class_folders(tmp_path / "sounds" / split, {"cat": 3, "dog": 3})
    data = prepare(config_for(tmp_path / "sounds"))
    assert (data.labels, data.eval_name) == (["cat", "dog"], "Test")


def test_groups_are_kept_apart_though_the_manifest_has_splits_and_shared_ones_are_named(
    tmp_path: Path,
) -> None:
    rows = [(f"{i}.wav", "ab"[i % 2], "test" if i >= 9 else "train", f"speaker{i % 3}") for i in range(12)]
    manifest = manifest_of(tmp_path, "split", "speaker", rows=rows)
    grouped = prepare(config_for(manifest, group_column="speaker", split_by="group", eval_fraction=0.3))
    speakers = [{clip.group for clip in part.clips} for part in (grouped.train, grouped.evaluation)]
    assert not speakers[0] & speakers[1]
    assert f"held out by speaker: {min(speakers[1])}" in grouped.notes
    assert grouped.test is not None and len(grouped.test) == 3
    assert any("2 of the test clips are of a speaker trained on" in note for note in grouped.notes)
    plain = prepare(config_for(manifest, group_column="speaker"))
    assert any("3 of the evaluation clips are of a speaker trained on" in note for note in plain.notes)


def test_a_label_for_each_clip_is_a_wrong_column(tmp_path: Path) -> None:
    manifest = manifest_of(tmp_path, rows=[(f"{index}.wav", f"label{index}") for index in range(12)])
    assert "--label-column right" in refusal(config_for(manifest))
