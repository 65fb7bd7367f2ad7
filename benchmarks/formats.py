"""What decoding costs by format: KB of a file, milliseconds of it, and MB of the process that decodes.

usage: python benchmarks/formats.py [RECORDING]

The recording (default: 4 s of noise that swells and sinks) is encoded in each format, and decoded to mono at
16 kHz as for training, by one thread: by libsndfile, which needs no extra, and by FFmpeg.
"""

import argparse
import io
import resource
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import soundfile
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from encoded import MADE_BY, encoded  # noqa: E402

from audiocls.data import decoders, ffmpeg  # noqa: E402
from audiocls.data.audio import decode  # noqa: E402
from audiocls.data.limits import BadAudio  # noqa: E402

RATE = 16_000
ROUNDS = 30
LIBSNDFILES = {
    "wav": ("WAV", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "ogg (Vorbis)": ("OGG", "VORBIS"),
    "ogg (Opus)": ("OGG", "OPUS"),
    "mp3": ("MP3", None),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recording", nargs="?", type=Path)
    recording = parser.parse_args().recording
    torch.set_num_threads(1)  # as where clips are decoded to be trained on
    if recording:
        samples = decode(recording, RATE).waveform
    else:
        swell = np.abs(np.sin(np.pi * np.arange(4 * RATE) / RATE))
        samples = (0.1 * swell * np.random.default_rng(0).standard_normal(4 * RATE)).astype(np.float32)
    contents = {}
    for name, (format, subtype) in LIBSNDFILES.items():
        content = io.BytesIO()
        soundfile.write(content, samples, RATE, format=format, subtype=subtype)
        contents[name] = content.getvalue()
    contents |= {suffix: encoded(samples, suffix) for suffix in MADE_BY}
    times: dict[tuple[str, str], list[float]] = {}
    for _ in range(ROUNDS):
        for name, content in contents.items():
            for decoder in ("libsndfile", "FFmpeg"):
                milliseconds = timed(content, decoder)
                if milliseconds is not None:
                    times.setdefault((name, decoder), []).append(milliseconds)
    print(f"{len(samples) / RATE:.1f} s of sound, decoded to {RATE} Hz, median (and range) of {ROUNDS}\n")
    print("| format | KB | libsndfile, ms | FFmpeg, ms |\n|---|---|---|---|")
    for name, content in contents.items():
        cells = [shown(times.get((name, decoder))) for decoder in ("libsndfile", "FFmpeg")]
        print(f"| {name} | {len(content) / 1000:.0f} | {' | '.join(cells)} |")
    began = time.perf_counter()
    process = ffmpeg.Process()
    process.ask({})
    start = 1000 * (time.perf_counter() - began)
    largest = max(resident_megabytes(one.process.pid) for one in ffmpeg.processes.idle)
    process.end()
    print(f"\nFFmpeg's process: {start:.0f} ms to start, {largest:.0f} MB after all of these; ", end="")
    print(f"ours: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


def timed(content: bytes, decoder: str) -> float | None:
    """Milliseconds of a decoding; None where this decoder does not do it."""
    reads_by = decoders.SoundFileReader
    if decoder == "FFmpeg":

        def refuses(*arguments: object) -> None:
            raise BadAudio("not by libsndfile")

        decoders.SoundFileReader = refuses  # type: ignore[assignment, misc]
    has_ffmpeg = decoder == "FFmpeg"
    is_installed = ffmpeg.is_installed
    ffmpeg.is_installed = lambda: has_ffmpeg  # type: ignore[assignment]
    try:
        began = time.perf_counter()
        decode(content, RATE)
        return 1000 * (time.perf_counter() - began)
    except BadAudio:
        return None
    finally:
        decoders.SoundFileReader = reads_by  # type: ignore[misc]
        ffmpeg.is_installed = is_installed


def shown(times: list[float] | None) -> str:
    return f"{statistics.median(times):.1f} ({min(times):.1f} to {max(times):.1f})" if times else "–"


def resident_megabytes(process: int) -> float:
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


if __name__ == "__main__":
    main()
