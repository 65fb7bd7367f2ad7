"""The data audit: flaws that were planted are found, those that were not are not."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import SAMPLING_RATE
from data_helpers import config_for, noise, run_script, write_table

from audiocls.data.audio import Decoded, Levels
from audiocls.data.audit import audit
from audiocls.data.measures import Measured, measure
from audiocls.data.prepare import RunData, prepare_data
from audiocls.data.silence import SilenceWatch
from audiocls.reporting.audit import classes_text, full_lines, summary_lines
from audiocls.reporting.pages import audit_page


def measured(waveform: np.ndarray) -> Measured:
    seconds = len(waveform) / SAMPLING_RATE
    return measure(Decoded(waveform, seconds, 8_000, 1, Levels(), goes_on=False), SAMPLING_RATE)


def test_silence_is_measured_in_stretches_of_20_ms() -> None:
    loud, quiet = np.full(640, 0.01, np.float32), np.full(640, 0.0005, np.float32)  # -40 and -66 dBFS
    waveform = np.concatenate([loud, quiet, quiet, quiet[:100]])  # 2, 2, 2 and an unfinished stretch
    assert measured(waveform).silent_share == 5 / 7
    assert measured(quiet).silent_share == 1


@pytest.mark.parametrize("block", [1, 100, 319, 320, 500, 5_000])
def test_silence_in_blocks_is_that_of_all_at_once(block: int) -> None:
    quiet = np.full(3_000, 0.0009, np.float32)  # -61 dBFS
    for length in (1, 320, 2_900, 3_000):
        for louder, is_silent in ((slice(0, 0), True), (slice(600, 640), True), (slice(640, 720), False)):
            waveform = quiet[:length].copy()
            waveform[louder] = 0.0014  # -57 dBFS, over an eighth of a stretch, then over a fourth
            watch = SilenceWatch(SAMPLING_RATE)
            blocks = [waveform[start : start + block] for start in range(0, length, block)]
            assert np.concatenate(list(watch.passing(blocks))).tolist() == waveform.tolist()
            assert watch.is_silent is (measured(waveform).silent_share == 1)
            assert watch.is_silent is (is_silent or length < 640)


@pytest.mark.parametrize(
    ("peaks", "is_clipped"),
    [([1, 1, 1], True), ([-1, -1, -1], True), ([1, 1], False), ([1, 1, 0.9, 1], False)],
)
def test_clipped_is_three_samples_in_a_row_at_full_scale(peaks: list[float], is_clipped: bool) -> None:
    waveform = noise(800)[:, 0]
    waveform[100 : 100 + len(peaks)] = peaks
    assert measured(waveform).is_clipped is is_clipped


@pytest.fixture(scope="module")
def flawed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of 12 sound clips and, one each, of everything the audit looks for."""
    folder = tmp_path_factory.mktemp("flawed")
    rows = []

    def add(name: str, label: str, split: str, sound: np.ndarray | None, rate: int = 8_000) -> None:
        if sound is None:
            (folder / name).write_bytes(b"fLaC and nothing else")
        elif np.abs(sound).max() > 1:
            soundfile.write(folder / name, sound, rate, subtype="FLOAT")
        else:
            # As integers: libsndfile rounds floats otherwise for FLAC than for WAV.
            soundfile.write(folder / name, (32_767 * sound).round().astype(np.int16), rate)
        rows.append([name, label, split])

    for index in range(12):
        add(f"{index:02d}.wav", "ab"[index % 2], "train", noise(1600, seed=index))
    add("echo.flac", "a", "validation", noise(1600, seed=0))  # 00.wav, in another format
    add("liar.wav", "a", "train", noise(1600, seed=1))  # 01.wav, which is a b
    add("own.wav", "b", "validation", noise(800, seed=90))
    add("silent.wav", "b", "train", np.zeros(1600))
    add("silent too.wav", "a", "validation", np.zeros(1600))
    add("late.wav", "b", "train", np.concatenate([np.zeros(3000), noise(1000, seed=91)[:, 0]]))
    add("clipped.wav", "a", "train", np.clip(100 * noise(1600, seed=92), -1, 1))
    add("stereo.wav", "a", "train", noise(4410, channels=2, seed=93), 22_050)
    one = noise(1600, seed=95)
    add("cancelled.wav", "a", "train", np.hstack([one, -one]))
    add("integers.wav", "b", "train", 32_767 * noise(1600, seed=96))
    add("broken.flac", "a", "train", None)
    add("short.wav", "a", "train", noise(4, seed=94))
    return write_table(folder / "clips.csv", ["path", "label", "split"], rows)


def prepared(manifest: Path) -> RunData:
    return prepare_data(config_for(manifest, max_seconds=0.4, max_bad_clips=0.5), SAMPLING_RATE, 40)


def test_planted_flaws_are_found_and_nothing_else(flawed: Path) -> None:
    found = audit("clips", prepared(flawed))

    def names(key: str) -> list[str]:
        assert found[key]["count"] == len(found[key]["names"])
        return [Path(name).name for name in found[key]["names"]]

    assert found["parts"]["train"]["clips"] == 19
    assert found["parts"]["evaluation"]["clips"] == 3
    assert names("silent") == ["silent.wav", "cancelled.wav", "silent too.wav"]
    assert names("mostly_silent") == ["late.wav"]
    assert names("clipped") == ["clipped.wav"]
    assert names("cancelled") == ["cancelled.wav"]
    assert names("integer_scale") == ["integers.wav"]
    assert [name.split()[0] for name in names("left_out")] == ["broken.flac", "short.wav"]
    assert found["rates"] == {"8000": 21, "22050": 1}
    assert found["channels"] == {"1": 20, "2": 2}
    assert found["copies"]["count"] == 2
    assert found["copies"]["across"] == {"evaluation": 1}
    assert found["copies"]["contradicting"] == 1
    pairs = [[Path(name).name.split()[0] for name in group] for group in found["copies"]["groups"]]
    assert pairs == [["01.wav", "liar.wav"], ["00.wav", "echo.flac"]]  # the contradiction first
    assert found["classes"] == {"train": {"a": 10, "b": 9}, "evaluation": {"a": 2, "b": 1}}
    assert found["largest_class_share"] == 10 / 19
    # 0.2 s each but for own.wav, 0.1 s, and late.wav, of whose 0.5 s the first 0.4 are used.
    assert found["seconds"]["total"] == pytest.approx(20 * 0.2 + 0.1 + 0.5)
    assert found["seconds"]["used"] == pytest.approx(20 * 0.2 + 0.1 + 0.4)
    assert sum(found["seconds"]["histogram"]["counts"]) == 22


def test_the_audit_is_the_same_from_the_cache_and_survives_json(flawed: Path) -> None:
    found = audit("clips", prepared(flawed))
    assert audit("clips", prepared(flawed)) == found
    assert json.loads(json.dumps(found)) == found


def test_text_and_page_say_what_was_found(flawed: Path) -> None:
    found = audit("clips", prepared(flawed))
    text, page = "\n".join(full_lines(found)), audit_page(found)
    named = "broken.flac short.wav late.wav clipped.wav cancelled.wav integers.wav echo.flac".split()
    for name in [*named, "silent too.wav"]:
        assert name in text
        assert name in page
    flaws = [
        "2 left out; 3 silent in what is used; 1 mostly silent; 1 clipped",
        "1 of channels that cancel; 1 at integer scale; 2 copies",
    ]
    assert "; ".join(flaws) in summary_lines(found)[2]


def test_the_audit_of_a_run_from_before_a_finding_was_looked_for_is_shown_without_it(flawed: Path) -> None:
    found = audit("clips", prepared(flawed))
    older = {kind: about for kind, about in found.items() if kind not in ("cancelled", "integer_scale")}
    text = "\n".join([*full_lines(older), *summary_lines(older), audit_page(older)])
    assert "clipped.wav" in text and "integer scale" not in text


def test_audit_only_looks(flawed: Path, tmp_path: Path) -> None:
    """More files than --max-bad-clips allows do not decode: to say so is what it is for."""
    done = run_script("train.py", "--dataset", str(flawed), "--model", "tiny", "--audit", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "broken.flac does not decode" in done.stdout
    assert done.stdout.splitlines()[-1].endswith("runs/audit-clips.html")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["audit-clips.html"]


def test_a_class_without_clips_is_the_smallest() -> None:
    assert classes_text({"dog": 5, "cat": 5}) == "classes: 2, each with 5 clips to train on"
    assert "the smallest 'owl' with 0" in classes_text({"dog": 5, "cat": 5, "owl": 0})


def test_sounds_of_equal_energy_are_no_copies() -> None:
    time = np.arange(SAMPLING_RATE) / SAMPLING_RATE
    tone = np.sin(2 * np.pi * 1_000 * time).astype(np.float32)
    click = np.zeros(SAMPLING_RATE, np.float32)
    click[5] = 0.5
    higher = np.sin(2 * np.pi * 7_000 * time).astype(np.float32)
    sounds = [tone, -tone, higher, click, -click, np.roll(click, 2)]
    digests = {measured(sound).digest for sound in sounds}
    assert len(digests) == len(sounds)
    assert measured(tone.copy()).digest in digests


def test_what_is_trained_on_and_tested_is_found_where_nothing_is_held_out(tmp_path: Path) -> None:
    rows = []
    for name, split, seed in (("a", "train", 0), ("b", "train", 1), ("c", "test", 0), ("d", "test", 2)):
        soundfile.write(tmp_path / f"{name}.wav", noise(1_600, seed=seed), SAMPLING_RATE)
        rows.append((f"{name}.wav", name in "ac", split))
    table = write_table(tmp_path / "clips.csv", ("path", "label", "split"), rows)
    data = prepare_data(config_for(table, split_by="nothing"), SAMPLING_RATE, 400)
    found = audit("clips", data)
    assert found["copies"]["across"] == {"test": 1}
    assert found["parts"].keys() == found["classes"].keys() == {"train", "test"}
    assert found["left_out"]["count"] == 0
