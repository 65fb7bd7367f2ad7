"""The cache of decoded clips: read once, never stale, never needed."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from data_helpers import file_clips, noise, write_wav

from audiocls.data import decoders, decoding
from audiocls.data.audio import DecodeOptions, decode
from audiocls.data.cache import Waveforms, cache_folder, decode_all
from audiocls.data.clips import Clip

MAX_SAMPLES = 1_600


@pytest.fixture
def clips(tmp_path: Path) -> list[Clip]:
    """Five clips of different lengths, some cut by MAX_SAMPLES, and amid them one that does not decode."""
    lengths = (0.05, 0.2, 0.1, 0.15, 0.07)
    paths = [write_wav(tmp_path / "clips" / f"{i}.wav", s, seed=i) for i, s in enumerate(lengths)]
    bad = tmp_path / "clips" / "bad.wav"
    bad.write_text("no audio")
    return file_clips([*paths[:2], bad, *paths[2:]])


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files decoded since."""
    names: list[str] = []

    def counted(audio: Path, *parameters: int) -> object:
        names.append(audio.name)
        return decode(audio, *parameters)

    monkeypatch.setattr(decoding, "decode", counted)
    return names


def all_of(clips: list[Clip], cache_dir: Path) -> Waveforms:
    return decode_all(clips, DecodeOptions(16_000, MAX_SAMPLES), cache_dir)


def assert_as_decoded(waveforms: Waveforms, clips: list[Clip]) -> None:
    """Every clip is what decode() gives, to the bit, and the bad one is an error without samples."""
    for index, clip in enumerate(clips):
        if Path(clip.path).name == "bad.wav":
            assert waveforms.num_samples[index] == 0
            assert "is text" in waveforms.errors[index]
            continue
        expected = decode(Path(clip.path), 16_000, MAX_SAMPLES)
        waveform = waveforms[index]
        assert waveform.dtype == np.float32
        np.testing.assert_array_equal(waveform, expected.waveform)
        assert waveforms.num_samples[index] == len(expected.waveform)
        assert waveforms.seconds[index] == expected.seconds
    assert list(waveforms.errors) == [2]


def the_folder(cache_dir: Path) -> Path:
    """The one finished cache there is."""
    (folder,) = (cache_dir / "waveforms").iterdir()
    return folder


def test_clips_are_what_decode_gives_and_a_second_call_decodes_nothing(
    clips: list[Clip], tmp_path: Path, decodes: list[str]
) -> None:
    waveforms = all_of(clips, tmp_path / "cache")
    assert sorted(decodes) == ["0.wav", "1.wav", "2.wav", "3.wav", "4.wav", "bad.wav"]
    assert_as_decoded(waveforms, clips)
    assert isinstance(waveforms.cache.store.values.base, np.memmap)  # mapped, not loaded
    assert not waveforms[0].flags.writeable  # or a transformation in place would change the cache
    decodes.clear()
    assert_as_decoded(all_of(clips, tmp_path / "cache"), clips)
    assert decodes == []


@pytest.mark.parametrize("thread_seconds", [0, 1])  # with threads, and without
def test_more_clips_than_are_decoded_at_once_stay_in_order(
    thread_seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "CHUNK", 4)
    monkeypatch.setattr(decoding, "THREAD_SECONDS", thread_seconds)
    paths = [write_wav(tmp_path / f"{i}.wav", 0.01 * (1 + i % 5), seed=i) for i in range(15)]
    waveforms = all_of(file_clips(paths), tmp_path / "cache")
    for index, path in enumerate(paths):
        np.testing.assert_array_equal(waveforms[index], decode(path, 16_000, MAX_SAMPLES).waveform)


@pytest.mark.parametrize("parameters", [(8_000, MAX_SAMPLES), (16_000, 800), (16_000, None)])
def test_other_parameters_are_another_cache(
    clips: list[Clip], tmp_path: Path, decodes: list[str], parameters: tuple[int, int | None]
) -> None:
    all_of(clips, tmp_path / "cache")
    decodes.clear()
    waveforms = decode_all(clips, DecodeOptions(*parameters), tmp_path / "cache")
    assert len(decodes) == len(clips)
    np.testing.assert_array_equal(waveforms[1], decode(Path(clips[1].path), *parameters).waveform)
    all_of(clips, tmp_path / "cache")
    assert len(decodes) == len(clips)  # the first cache is still there


def other_length(path: Path) -> None:
    write_wav(path, 0.3, seed=9)


def same_length_later(path: Path) -> None:
    before = path.stat()
    write_wav(path, 0.2, seed=9)
    assert path.stat().st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))


def replaced_with_the_same_times(path: Path) -> None:
    before = path.stat()
    write_wav(path.with_name("new.wav"), 0.2, seed=9).replace(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("change", [other_length, same_length_later, replaced_with_the_same_times])
def test_a_changed_file_is_decoded_anew(
    clips: list[Clip], tmp_path: Path, decodes: list[str], change: Callable[[Path], None]
) -> None:
    before = all_of(clips, tmp_path / "cache")[1].copy()
    decodes.clear()
    change(Path(clips[1].path))
    waveforms = all_of(clips, tmp_path / "cache")
    assert "1.wav" in decodes
    assert not np.array_equal(waveforms[1], before)
    assert_as_decoded(waveforms, clips)


def test_a_file_that_appears_is_decoded(tmp_path: Path) -> None:
    clips = file_clips([write_wav(tmp_path / "a.wav"), tmp_path / "late.wav"])
    assert list(all_of(clips, tmp_path / "cache").errors) == [1]
    write_wav(tmp_path / "late.wav")
    assert all_of(clips, tmp_path / "cache").errors == {}


def test_a_file_that_could_not_be_opened_for_a_moment_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a wrong permission, put right since: neither size, time nor inode tell."""
    clips = file_clips([write_wav(tmp_path / "a.wav"), write_wav(tmp_path / "b.wav")])
    with monkeypatch.context() as patch:

        def fails(*arguments: object) -> None:
            raise soundfile.LibsndfileError(2)  # SF_ERR_SYSTEM

        patch.setattr(decoders, "Forward", fails)
        assert list(all_of(clips, tmp_path / "cache").errors) == [0, 1]
    assert all_of(clips, tmp_path / "cache").errors == {}


HARMS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "cut": ("values", lambda path: path.write_bytes(path.read_bytes()[:-4])),
    "gone": ("values", Path.unlink),
    "index gone": ("index.json", Path.unlink),
    "index cut": ("index.json", lambda path: path.write_bytes(path.read_bytes()[:100])),
    "index of zeros": ("index.json", lambda path: path.write_bytes(bytes(len(path.read_bytes())))),
    "index of something else": ("index.json", lambda path: path.write_text("[]")),
    "index without errors": (
        "index.json",
        lambda path: path.write_text(path.read_text().replace('"errors"', '"other"')),
    ),
}


@pytest.mark.parametrize(("name", "harm"), HARMS.values(), ids=HARMS)
def test_a_damaged_cache_is_made_anew(
    clips: list[Clip], tmp_path: Path, decodes: list[str], name: str, harm: Callable[[Path], object]
) -> None:
    all_of(clips, tmp_path / "cache")
    harm(the_folder(tmp_path / "cache") / name)
    assert_as_decoded(all_of(clips, tmp_path / "cache"), clips)
    decodes.clear()
    assert_as_decoded(all_of(clips, tmp_path / "cache"), clips)
    assert decodes == []  # and is whole again


def test_nothing_unfinished_is_left(
    clips: list[Clip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(audio: Path, *parameters: int) -> object:
        raise RuntimeError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(decoding, "decode", broken)
        with pytest.raises(RuntimeError):
            all_of(clips, tmp_path / "cache")
    assert list((tmp_path / "cache" / "waveforms").iterdir()) == []
    all_of(clips, tmp_path / "cache")
    assert {path.name for path in the_folder(tmp_path / "cache").iterdir()} == {"values", "index.json"}


# Where nothing can be written


def test_without_a_folder_to_write_to_clips_are_decoded_when_asked_for(
    clips: list[Clip], tmp_path: Path, decodes: list[str]
) -> None:
    # A file in the place of a folder: no user, root included, can write below it.
    (tmp_path / "file").touch()
    waveforms = all_of(clips, tmp_path / "file" / "cache")
    assert waveforms.cache is None
    decodes.clear()
    assert_as_decoded(waveforms, clips)
    assert len(decodes) == 5


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("seconds", [0.02, 20])  # noticed on closing, and on writing
def test_a_full_disk_is_noticed_at_any_time_and_costs_only_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    path_open = Path.open

    def full(path: Path, *arguments: Any, **options: Any) -> object:
        target = Path("/dev/full") if path.name == "values" else path
        return path_open(target, *arguments, **options)

    paths = [write_wav(tmp_path / f"{i}.wav", seconds, seed=i) for i in range(3)]
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        waveforms = decode_all(file_clips(paths), DecodeOptions(16_000), tmp_path / "cache")
    assert waveforms.cache is None
    assert list((tmp_path / "cache" / "waveforms").iterdir()) == []
    for index, path in enumerate(paths):
        np.testing.assert_array_equal(waveforms[index], decode(path, 16_000).waveform)


# What travels to workers


def test_a_pickled_set_carries_no_samples(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.wav" for i in range(4)]
    for number, path in enumerate(paths):
        soundfile.write(path, noise(100_000, seed=number), 16_000)
    waveforms = decode_all(file_clips(paths), DecodeOptions(16_000), tmp_path / "cache")
    expected = [waveforms[index].copy() for index in range(4)]  # and the file is mapped
    pickled = pickle.dumps(waveforms)
    assert len(pickled) < 10_000 < 4 * sum(map(len, expected))
    unpickled = pickle.loads(pickled)
    for index in range(4):
        np.testing.assert_array_equal(unpickled[index], expected[index])


def test_decoding_leaves_the_number_of_threads_as_it_was(clips: list[Clip], tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        all_of(clips, tmp_path / "cache")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_only_bad_clips_give_an_empty_cache(tmp_path: Path, decodes: list[str]) -> None:
    (tmp_path / "bad.wav").write_text("no audio")
    clips = file_clips([tmp_path / "bad.wav"])
    for _ in range(2):
        assert list(all_of(clips, tmp_path / "cache").errors) == [0]
    assert decodes == ["bad.wav"]
    assert len(all_of(clips, tmp_path / "cache")[0]) == 0


def test_the_cache_lies_where_the_system_keeps_such_things(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder(None) == tmp_path / "audiocls"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder(None) == tmp_path / ".cache" / "audiocls"
