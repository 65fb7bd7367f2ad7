"""Files of the formats that FFmpeg reads, encoded by PyAV."""

import io
from typing import Any

import av
import numpy as np

RATE = 16_000
# suffix: FFmpeg's muxer, its encoder, and the rate that this one takes
MADE_BY = {
    "m4a": ("ipod", "aac", 44_100),
    "mp4": ("mp4", "aac", 16_000),
    "mov": ("mov", "pcm_s16le", 16_000),
    "alac.m4a": ("ipod", "alac", 16_000),
    "webm": ("webm", "libopus", 48_000),
    "mka": ("matroska", "libmp3lame", 44_100),
    "3gp": ("3gp", "libopencore_amrnb", 8_000),
    "amr": ("amr", "libopencore_amrnb", 8_000),
    "aac": ("adts", "aac", 16_000),
    "ac3": ("ac3", "ac3", 48_000),
    "eac3": ("eac3", "eac3", 48_000),
    "wma": ("asf", "wmav2", 44_100),
    "wv": ("wv", "wavpack", 16_000),
    "tta": ("tta", "tta", 16_000),
}
LOSSLESS = {"pcm_s16le": "s16", "alac": "s16p", "wavpack": "s16p", "tta": "s16"}  # with 16 bits a sample


def tone(num_samples: int) -> np.ndarray:
    """float32 [samples] that every codec keeps nearly as it is: a slow sweep, at a third of full scale."""
    seconds = np.arange(num_samples) / RATE
    return (0.3 * np.sin(2 * np.pi * (300 * seconds + 100 * seconds**2))).astype(np.float32)


def encoded(
    samples: np.ndarray, suffix: str, *, channels: int = 1, with_video: bool = False, tracks: int = 1
) -> bytes:
    """A file of mono `samples` at 16 kHz, alike in all channels."""
    muxer, encoder, rate = MADE_BY[suffix]
    layout = {1: "mono", 2: "stereo"}[channels]
    content = io.BytesIO()
    with av.open(content, "w", format=muxer) as container:
        if with_video:
            video: Any = container.add_stream("libx264", rate=10)
            video.width = video.height = 64
            video.pix_fmt = "yuv420p"
        made: list[Any] = [container.add_stream(encoder, rate=rate, layout=layout) for _ in range(tracks)]
        for stream in made:
            codec = stream.codec_context
            if encoder in LOSSLESS:
                codec.format = LOSSLESS[encoder]
            codec.bit_rate = 64_000
            codec.open()
        if with_video:
            picture = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
            container.mux(video.encode(picture))
            container.mux(video.encode(None))
        for stream in made:
            codec = stream.codec_context
            resampler = av.AudioResampler(codec.format, layout, rate, codec.frame_size or 1_024)
            frame = av.AudioFrame.from_ndarray(np.stack(channels * [samples]), format="fltp", layout=layout)
            frame.sample_rate = RATE
            for one in (*resampler.resample(frame), *resampler.resample(None)):
                container.mux(stream.encode(one))
            container.mux(stream.encode(None))
    return content.getvalue()


def stumbling(content: bytes, num_bytes: int = 5_000) -> bytes:
    """The file with random bytes in its middle."""
    middle = len(content) // 2
    wrong = np.random.default_rng(0).bytes(num_bytes)
    return content[:middle] + wrong + content[middle + num_bytes :]
