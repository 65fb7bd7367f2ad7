"""Hostile recordings of phones and browsers: as hostile audio, of the formats that FFmpeg decodes."""

import functools
import io
import sys
from collections.abc import Callable

import av
import numpy as np
from cases import parse
from encoded import MADE_BY, encoded, tone
from hostile_audio import DAMAGE, EITHER, READ, REFUSED, Case, Cases, classify_and_train, damaged, with_bytes
from hostile_inputs import RATE


@functools.cache
def whole(suffix: str) -> bytes:
    return encoded(tone(RATE), suffix)


def bombs() -> Cases:
    for suffix, minutes in (("m4a", 11), ("webm", 30), ("amr", 20), ("mka", 15), ("wv", 11), ("tta", 11)):
        content = encoded(np.zeros(minutes * 60 * RATE, np.float32), suffix)
        yield f"{suffix}: {minutes} min of silence", REFUSED, with_bytes(content, f"a.{suffix}")


def names() -> Cases:
    for suffix in MADE_BY:
        for name in (f"a.{suffix}", "a.wav", "a", "concat:a|b", "pipe:0", "-y"):
            yield f"{suffix} named {name}", READ, with_bytes(whole(suffix), name)


def video_alone() -> bytes:
    content = io.BytesIO()
    with av.open(content, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        picture = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
        container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return content.getvalue()


def containers() -> Cases:
    yield "film without sound", REFUSED, with_bytes(video_alone(), "a.mp4")
    yield "film", READ, with_bytes(encoded(tone(RATE), "mp4", with_video=True), "a.mp4")
    yield "two tracks", READ, with_bytes(encoded(tone(RATE), "mka", tracks=2), "a.mka")
    m4a = whole("m4a")
    yield "m4a without its index", REFUSED, with_bytes(m4a[: m4a.index(b"moov") - 4], "a.m4a")
    # Sound that lies in another file: the entry of a data reference with flags 0 and an address.
    dref = m4a.index(b"url \0\0\0\1")
    elsewhere = m4a[: dref + 7] + b"\0" + m4a[dref + 8 :]
    yield "m4a whose sound lies elsewhere", EITHER, with_bytes(elsewhere, "a.m4a")
    for what, begins in {
        "ftyp alone": b"\0\0\0\x1cftypM4A \0\0\2\0M4A isomiso2",
        "boxes in boxes": b"\0\0\0\x10ftypM4A \0\0\0\0" + b"\xff\xff\xff\xfemoov" * 5_000,
        "ebml alone": b"\x1a\x45\xdf\xa3\x01\xff\xff\xff\xff\xff\xff\xff",
        "asf alone": b"\x30\x26\xb2\x75\x8e\x66\xcf\x11" + b"\xff" * 300,
        "amr of silence": b"#!AMR\n" + b"\x7c" * 200_000,
        "adts of ones": b"\xff\xf1" * 50_000,
        "ac3 of ones": b"\x0b\x77" + b"\xff" * 50_000,
        "ape": b"MAC \x96\x0f" + b"\xff" * 500,
        "musepack": b"MPCKSH" + b"\xff" * 500,
        "tta of centuries": b"TTA1\1\0\1\0\x10\0\x80>\0\0\xff\xff\xff\xff" + bytes(500),
        "wavpack of ones": b"wvpk" + b"\xff" * 500,
    }.items():
        yield what, EITHER, with_bytes(begins)


def broken(count: int, generator: np.random.Generator) -> Cases:
    for number in range(count):
        suffix = list(MADE_BY)[number % len(MADE_BY)]
        how, seed = DAMAGE[generator.integers(len(DAMAGE))], int(generator.integers(2**31))
        yield f"{suffix} broken: {how} {seed}", EITHER, with_bytes(damaged(whole(suffix), how, seed))


def main() -> int:
    arguments = parse(__doc__, 300)
    kinds: tuple[Callable[[], Cases], ...] = (bombs, names, containers)
    cases: list[Case] = [case for kind in kinds for case in kind()]
    cases += broken(max(0, arguments.count - len(cases)), np.random.default_rng(arguments.seed))
    if arguments.without_formats:
        cases = [(what, REFUSED if expected == READ else expected, make) for what, expected, make in cases]
    return classify_and_train("hostile formats", cases, arguments.without_formats)


if __name__ == "__main__":
    sys.exit(main())
