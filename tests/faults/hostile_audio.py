"""Hostile audio: every input is refused in one line or classified; its neighbours' scores do not change."""

import base64
import json
import os
import socket
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import soundfile
from cases import parse
from conftest import write_clips
from data_helpers import noise
from hostile_inputs import RATE, Outcome, OutcomeTally, in_child, save_classifier, script

from audiocls.data import ffmpeg

Make = Callable[[Path], Path]  # writes the input into an empty folder and returns what to classify
Case = tuple[str, str, Make]  # what, what must come of it
Cases = Iterator[Case]
EITHER, REFUSED, READ = "either", "refused", "read"


def wav_bytes(
    data: bytes = bytes(3_200),
    *,
    tag: int = 1,
    channels: int = 1,
    rate: int = RATE,
    bits: int = 16,
    align: int | None = None,
    data_size: int | None = None,
    riff_size: int | None = None,
) -> bytes:
    """A WAV file whose header may say anything."""
    align = max(1, channels * bits // 8) % 65_536 if align is None else align
    fmt = struct.pack("<HHIIHH", tag, channels, rate, rate * align % 2**32, align, bits)
    data_size = len(data) if data_size is None else data_size
    body = b"WAVEfmt " + struct.pack("<I", len(fmt)) + fmt + b"data" + struct.pack("<I", data_size) + data
    return b"RIFF" + struct.pack("<I", len(body) if riff_size is None else riff_size) + body


def at(name: str, write: Callable[[Path], object]) -> Make:
    def make(folder: Path) -> Path:
        write(folder / name)
        return folder / name

    return make


def with_bytes(content: bytes, name: str = "a.wav") -> Make:
    return at(name, lambda path: path.write_bytes(content))


def with_samples(
    samples: np.ndarray,
    rate: int = RATE,
    name: str = "a.wav",
    format: str = "WAV",
    subtype: str | None = None,
) -> Make:
    def write(path: Path) -> None:
        with path.open("wb") as file:  # soundfile itself writes no name that is not UTF-8
            soundfile.write(file, samples, rate, format=format, subtype=subtype)

    return at(name, write)


def silence(seconds: float, rate: int, format: str, subtype: str | None = None, channels: int = 1) -> Make:
    def write(path: Path) -> None:
        with soundfile.SoundFile(path, "w", rate, channels, subtype, format=format) as file:
            block = np.zeros((rate * 10, channels), np.int16)
            for _ in range(round(seconds / 10)):
                file.write(block)

    return at(f"a.{format.lower()}", write)


def sparse(header: bytes, size: int, name: str = "a.wav") -> Make:
    """A file of `size` bytes that takes a few on the disk."""

    def write(path: Path) -> None:
        path.write_bytes(header)
        os.truncate(path, size)

    return at(name, write)


def bombs() -> Cases:
    yield "flac: 2 h of silence", REFUSED, silence(7_200, RATE, "FLAC")
    yield "flac: 11 min of silence at 192 kHz", REFUSED, silence(660, 192_000, "FLAC")
    yield "flac: 8 channels of 11 min", REFUSED, silence(660, RATE, "FLAC", channels=8)
    yield "vorbis: 15 min of silence", REFUSED, silence(900, RATE, "OGG", "VORBIS")
    yield "opus: 15 min of silence", REFUSED, silence(900, 48_000, "OGG", "OPUS")
    yield "mp3: 15 min of silence", REFUSED, silence(900, RATE, "MP3")
    yield "alac: 11 min of silence", REFUSED, silence(660, RATE, "CAF", "ALAC_16")
    big = 2**32 - 2
    yield "sparse: 37 h in 4 GB", REFUSED, sparse(wav_bytes(b"", data_size=big - 44), big)
    wide = wav_bytes(b"", channels=64, rate=384_000, data_size=big - 44)
    yield "sparse: 64 channels at 384 kHz", REFUSED, sparse(wide, big)
    wide = wav_bytes(b"", channels=64, rate=48_000, data_size=big - 44)
    yield "sparse: 64 channels at 48 kHz", REFUSED, sparse(wide, big)
    fast = wav_bytes(b"", tag=7, bits=8, rate=384_000, data_size=2**29)
    yield "sparse: 23 min of u-law at 384 kHz", REFUSED, sparse(fast, 2**29)
    yield "id3 tag of 200 MB", EITHER, sparse(b"ID3\x04\0\0\x60\0\0\0", 2**28, "a.mp3")


def headers() -> Cases:
    for size in (0, 1, 3_199, 3_201, 2**31 - 1, 2**31, 2**32 - 1):
        yield f"data size {size}", EITHER, with_bytes(wav_bytes(data_size=size))
        yield f"riff size {size}", EITHER, with_bytes(wav_bytes(riff_size=size))
    for channels in (0, 2, 63, 64, 65, 255, 1_024, 65_535):
        yield f"{channels} channels", EITHER, with_bytes(wav_bytes(bytes(128_000), channels=channels))
    for rate in (0, 1, 2**31 - 1, 2**31, 2**32 - 1):
        yield f"{rate} Hz", REFUSED, with_bytes(wav_bytes(rate=rate))
    for bits in (0, 1, 7, 12, 33, 64, 65_535):
        yield f"{bits} bits", EITHER, with_bytes(wav_bytes(bits=bits))
    for align in (0, 1, 3, 65_535):
        yield f"block align {align}", EITHER, with_bytes(wav_bytes(align=align))
    for tag in (0, 2, 3, 6, 7, 0x11, 0x31, 0x55, 0xFFFE, 0xFFFF):
        yield f"format tag {tag:#x}", EITHER, with_bytes(wav_bytes(tag=tag))

    def flac(frames: int) -> Make:
        def make(folder: Path) -> Path:
            path = with_samples(noise(8_000), name="a.flac", format="FLAC")(folder)
            content = bytearray(path.read_bytes())
            content[21] = content[21] & 0xF0 | frames >> 32  # STREAMINFO's total, 36 bits
            content[22:26] = struct.pack(">I", frames & 0xFFFFFFFF)
            path.write_bytes(content)
            return path

        return make

    for frames in (0, 1, 7_999, 8_001, 2**32, 2**36 - 1):
        yield f"flac that claims {frames} frames", EITHER, flac(frames)


def rates_and_lengths() -> Cases:
    good = (4_000, 8_000, 11_025, 22_050, 44_100, 48_000, 88_200, 96_000, 192_000, 384_000)
    for rate in (1, 100, 3_999, *good, 4_001, 7_351, 15_999, 16_001, 44_101, 383_999, 384_001, 1_000_000):
        expected = READ if rate in good else EITHER if 4_000 <= rate <= 384_000 else REFUSED
        yield f"rate {rate}", expected, with_samples(noise(rate // 4 + 1), rate)
    for length in (0, 1, 2, 10, 39, 40, 41, 79, 80, 81, 399, 400, 401, 3_279, 3_280):
        yield f"{length} samples", EITHER, with_samples(noise(length))
        yield f"{length} samples at 8 kHz, flac", EITHER, with_samples(noise(length), 8_000, "a.flac", "FLAC")


def values() -> Cases:
    flat = np.zeros(4_000)
    for number in (np.nan, np.inf, -np.inf, 3e38, -3e38, 1e30, 1e20, 1e7):
        for where in (0, 2_000, 3_999):
            samples = flat.copy()
            samples[where] = number
            yield f"{number} at {where}", REFUSED, with_samples(samples, subtype="FLOAT")
    yield "double beyond float", REFUSED, with_samples(flat + 1e300, subtype="DOUBLE")
    for number in (0.0, 1.0, -1.0, 1e5, 1e-40, 1e-30):
        yield f"all {number}", READ, with_samples(flat + number, subtype="FLOAT")
    swings = np.where(np.arange(4_000) % 2, 1.0, -1.0)
    yield "full swing", READ, with_samples(swings, subtype="PCM_16")
    for exponent in (10, 38):
        yield f"swings of 1e{exponent}", REFUSED, with_samples(swings * 10.0**exponent, subtype="DOUBLE")


def exotic() -> Cases:
    for format in soundfile.available_formats():
        if format == "RAW":
            continue
        for subtype in soundfile.available_subtypes(format):
            rate = 8_000 if subtype.startswith(("GSM", "G72", "VOX", "NMS")) else RATE

            def write(path: Path, format: str = format, subtype: str = subtype, rate: int = rate) -> None:
                try:
                    soundfile.write(path, noise(8_000), rate, format=format, subtype=subtype)
                except (soundfile.LibsndfileError, ValueError):  # not every pair is written
                    path.write_bytes(format.encode() + subtype.encode())

            yield f"{format} {subtype}", EITHER, at(f"a.{format.lower()}", write)


def wrong() -> Cases:
    random = np.random.default_rng(1).bytes(20_000)
    png = b"\x89PNG\r\n\x1a\n" + random[:500]
    contents = {
        "empty": b"",
        "git lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "playlist": b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:1/a.ts\n",
        "concat script": b"ffconcat version 1.0\nfile /etc/passwd\n",
        "text": b"hello\n" * 500,
        "html": b"<html><script>alert(1)</script></html>",
        "png": png,
        "zip": b"PK\x03\x04" + random[:500],
        "elf": Path(sys.executable).resolve().read_bytes()[:50_000],
        "m4a": b"\0\0\0 ftypM4A " + random[:500],
        "random": random,
        "zeros": bytes(20_000),
        "ones": b"\xff" * 20_000,
        "riff alone": b"RIFF",
        "riff of riffs": b"RIFF\xff\xff\xff\xffWAVE" * 500,
        "id3 alone": b"ID3\x04\0\0\x7f\x7f\x7f\x7f",
        "ogg pages": b"OggS\0\2" + bytes(20) + b"\xff" * 300,
    }
    for what, content in contents.items():
        for suffix in ("wav", "mp3", "flac"):
            yield f"{what} named .{suffix}", EITHER, with_bytes(content, f"a.{suffix}")
    yield "flac named .wav", READ, with_samples(noise(8_000), name="a.wav", format="FLAC")
    yield "wav named .flac", READ, with_samples(noise(8_000), name="a.flac", format="WAV")
    yield "wav without a suffix", READ, with_samples(noise(8_000), name="a", format="WAV")


def names() -> Cases:
    odd = [
        *(b"a\nb", b"a\r\nb", b"\x1b[2J\x1b[31mred", b"\x1b]0;title\x07", b"\xc2\x9b31m"),  # C1's CSI
        *("\u202egnp".encode(), "\u2066\u200b\ufeff".encode(), b"caf\xe9", b"\xff\xfe", b"\x7f\x01"),
        *(b"x" * 251, b"\x1b" * 251, b"=cmd|' C calc'!A0", b"+1", b"-n", b"--help", b"@SUM(1)"),
        *(b"$(touch canary)", b"`touch canary`;", b"%s%n%x", b"<img src=x onerror=alert(1)>"),
        *(b'"quoted", and a comma', b"back\\slash", b"tab\t", b" "),
    ]
    for name in odd:
        name = os.fsdecode(name + b".wav")
        yield f"name {name!r}", READ, with_samples(noise(8_000, seed=5), name=name)


def special() -> Cases:
    def unix_socket(path: Path) -> None:
        here = os.open(".", os.O_RDONLY)
        os.chdir(path.parent)  # a socket's address is short
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(path.name)
        os.fchdir(here)
        os.close(here)

    def unreadable(folder: Path) -> Path:
        path = with_samples(noise(8_000))(folder)
        path.chmod(0)
        return path

    yield "fifo", REFUSED, at("a.wav", os.mkfifo)
    yield "socket", REFUSED, at("a.wav", unix_socket)
    devices = [f"/dev/{name}" for name in ("zero", "null", "full", "random", "tty", "stdin")]
    for target in (*devices, "/proc/self/mem", "/proc/self/environ", "/proc/kmsg", "/nowhere", "a.wav"):
        yield f"link to {target}", REFUSED, at("a.wav", lambda path, to=target: path.symlink_to(to))
    yield "missing", REFUSED, lambda folder: folder / "nowhere.wav"
    yield "unreadable", REFUSED if os.geteuid() else EITHER, unreadable  # root reads everything


DAMAGE = ("cut", "bytes", "header", "zeros", "twice", "sizes")


def damaged(whole: bytes, how: str, seed: int) -> bytes:
    """A file cut, overwritten, repeated, or with bytes or sizes in it drawn anew."""
    draw = np.random.default_rng(seed)
    content = bytearray(whole)
    start = int(draw.integers(len(content)))
    match how:
        case "cut":
            del content[start:]
        case "zeros":
            content[start : start + 500] = bytes(min(500, len(content) - start))
        case "twice":
            content[start:start] = content
        case "sizes":
            for place in draw.integers(len(content) // 4, size=draw.integers(1, 10)):
                size = int(draw.choice([0, 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1]))
                content[4 * place : 4 * place + 4] = size.to_bytes(4, "big")
        case _:
            end = 120 if how == "header" else len(content)
            for place in draw.integers(end, size=draw.integers(1, 40)):
                content[place] = int(draw.integers(256))
    return bytes(content)


def broken(generator: np.random.Generator) -> Cases:
    """Files of every kind cut, overwritten, or with bytes drawn anew, many in their headers; endlessly."""
    kinds = {
        "wav": ("WAV", "PCM_16"),
        "float.wav": ("WAV", "FLOAT"),
        "ima.wav": ("WAV", "IMA_ADPCM"),
        "ms.wav": ("WAV", "MS_ADPCM"),
        "flac": ("FLAC", None),
        "ogg": ("OGG", "VORBIS"),
        "opus": ("OGG", "OPUS"),
        "mp3": ("MP3", None),
        "aiff": ("AIFF", "PCM_24"),
        "w64": ("W64", "PCM_16"),
        "rf64": ("RF64", "PCM_16"),
        "au": ("AU", "ULAW"),
        "alac.caf": ("CAF", "ALAC_24"),
    }
    while True:
        for suffix, (format, subtype) in kinds.items():
            how = DAMAGE[generator.integers(len(DAMAGE))]
            seed = int(generator.integers(2**31))

            whole = with_samples(noise(8_000), RATE, f"a.{suffix}", format, subtype)

            def make(folder: Path, whole: Make = whole, how: str = how, seed: int = seed) -> Path:
                path = whole(folder)
                path.write_bytes(damaged(path.read_bytes(), how, seed))
                return path

            yield f"{suffix} broken: {how} {seed}", EITHER, make


def all_cases(count: int, seed: int) -> list[Case]:
    """`count` cases: all the kinds in turn, the broken ones to fill up; fewer than there are: drawn."""
    generator = np.random.default_rng(seed)
    kinds = (bombs, headers, rates_and_lengths, values, exotic, wrong, names, special)
    fixed = [case for kind in kinds for case in kind()]
    num_broken = max(count // 6, count - len(fixed))
    num_fixed = count - num_broken
    chosen = sorted(generator.choice(len(fixed), num_fixed, replace=False).tolist())
    endless = broken(generator)
    return [fixed[index] for index in chosen] + [next(endless) for _ in range(num_broken)]


def rows_of(outcome: Outcome) -> list[dict]:
    def no_constant(text: str) -> float:
        raise ValueError(f"{text} among the scores")

    return [json.loads(line, parse_constant=no_constant) for line in outcome.stdout.splitlines()]


def judge(outcome: Outcome, path: Path, expected: str, good: list[bytes]) -> tuple[str, list[str]]:
    """What came of one input between two good ones, and which promises were broken."""
    try:
        rows = rows_of(outcome)
    except ValueError as error:
        return "unreadable", [f"results are not JSON: {error}"]
    if len(rows) != 3:
        return "no result", [f"{len(rows)} results for 3 inputs, exit code {outcome.code}"]
    violations = []
    lines = outcome.stdout.splitlines()
    if [lines[0], lines[2]] != good:
        violations.append("the neighbours' scores changed")
    encoded = rows[1].get("path_base64")  # of a name that is not UTF-8
    shown = os.fsdecode(base64.b64decode(encoded)) if encoded else rows[1]["path"]
    if shown != str(path):
        violations.append(f"path is {rows[1]['path']!r}")
    result = REFUSED if "error" in rows[1] else READ
    if expected not in (EITHER, result):
        violations.append(f"was {result}, not {expected}: {rows[1].get('error')}")
    if outcome.code != (3 if result == REFUSED else 0):
        violations.append(f"exit code {outcome.code} for what was {result}")
    if result == REFUSED and "\n" in rows[1]["error"]:
        violations.append("the reason has several lines")
    return result, violations


def weights_of_training(workplace: Path, dataset: Path, name: str) -> tuple[Outcome, bytes]:
    """A short training run on `dataset`, and the weights that it saved."""
    run = workplace / name
    outcome = in_child(
        script(
            *("train", "--dataset", dataset, "--model", workplace / "model", "--output-dir", run),
            *("--max-steps", 2, "--max-bad-clips", 1, "--cache-dir", workplace / f"cache-{name}"),
            *("--max-seconds", "none", "--num-workers", 0),
        ),
        most_seconds=300,
    )
    weights = run / "best" / "model.safetensors"
    return outcome, weights.read_bytes() if weights.exists() else b""


def main() -> int:
    arguments = parse(__doc__, 450)
    return classify_and_train(
        "hostile audio", all_cases(arguments.count, arguments.seed), arguments.without_formats
    )


def classify_and_train(what: str, cases: list[Case], without_formats: bool) -> int:
    """Classify each input between two good ones, then train on good clips beside all that was refused."""
    if without_formats:
        ffmpeg.is_installed = lambda: False  # type: ignore[assignment]
        what += ", without PyAV"
    tally = OutcomeTally(what)
    with tempfile.TemporaryDirectory(prefix="audiocls-faults-") as folder:
        workplace = Path(folder)
        model = save_classifier(workplace / "model")
        first, second = (workplace / f"good {number}.wav" for number in (1, 2))
        soundfile.write(first, noise(5_000, seed=1), RATE)
        soundfile.write(second, noise(9_000, seed=2), RATE)
        reference = in_child(script("infer", model, first, second, "--format", "jsonl"))
        good = reference.stdout.splitlines()
        if reference.code != 0 or len(good) != 2:
            print(reference.stderr.decode(errors="replace"))
            return 1
        clips = write_clips(workplace / "clips", [1_200] * 12)
        refused: list[Path] = []
        for number, (case, expected, make) in enumerate(cases):
            here = workplace / f"{number:04d}"
            here.mkdir()
            path = make(here)
            outcome = in_child(script("infer", model, first, path, second, "--format", "jsonl"))
            result, violations = judge(outcome, path, expected, good)
            tally.add_outcome(case, outcome, result, violations)
            if result == REFUSED:
                refused.append(path)

        # Training on the good clips beside all that was refused is training on the good clips.
        _, expected_weights = weights_of_training(workplace, clips, "alone")
        for number, path in enumerate(refused):
            (clips / "hum" / f"hostile {number}.wav").symlink_to(path)
        outcome, weights = weights_of_training(workplace, clips, "beside")
        outcome.seconds = 0.0  # of many inputs
        same = weights == expected_weights != b""
        violations = [] if same else [f"other weights, exit code {outcome.code}: {outcome.stderr[-300:]!r}"]
        tally.add_outcome("training beside all that was refused", outcome, "trained", violations)
    return tally.end()


if __name__ == "__main__":
    sys.exit(main())
