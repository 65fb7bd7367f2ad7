"""The process in which FFmpeg decodes, for data/ffmpeg.py: `python ffmpeg_child.py SOCKET`.

It is run as a file, and imports PyAV and the standard library alone: a broken or hostile recording can only
end this process, and takes no more memory and time of the processor than it has.
"""

import json
import os
import resource
import signal
import socket
import struct
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO

import av

MEMORY_BYTES = 2**29  # on top of what the process has at its start
SPARE_SECONDS = 10  # of the processor's time, which a recording may take beside its own length
# FFmpeg's decoders that may run: those of the codecs of recordings, and no rarities.
DECODERS = frozenset(
    "aac aac_fixed ac3 ac3_fixed adpcm_ima_qt adpcm_ima_wav adpcm_ms alac amrnb amrwb ape eac3 flac gsm "
    "gsm_ms libgsm libgsm_ms libopencore_amrnb libopencore_amrwb libopus libspeex libvorbis mp1 "
    "mp1float mp2 mp2float mp3 mp3float mpc7 mpc8 opus pcm_alaw pcm_f32be pcm_f32le pcm_f64be pcm_f64le "
    "pcm_mulaw pcm_s16be pcm_s16le pcm_s24be pcm_s24le pcm_s32be pcm_s32le pcm_s8 pcm_u8 speex tta "
    "vorbis wavpack wmalossless wmapro wmav1 wmav2 wmavoice".split()
)


UNFINISHED = "does not decode: its index is damaged or lacking, as where a recorder was cut off"


# Demuxers of formats that say no length: FFmpeg takes the first frames for all.
GUESSED = ("aac", "ac3", "eac3", "amr", "mp3")


class WithoutTags:
    """A file without the tags at its end (APE's, ID3's), which some demuxers take for damaged sound."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.size = file.seek(0, os.SEEK_END)
        for footer_bytes, name in ((128, b"TAG"), (32, b"APETAGEX")):
            file.seek(max(0, self.size - footer_bytes))
            footer = file.read(footer_bytes)
            if footer.startswith(name):
                length = footer_bytes
                if name == b"APETAGEX":  # its last flag says whether it has a header besides
                    length = int.from_bytes(footer[12:16], "little") + 32 * (footer[23] >> 7)
                self.size -= min(length, self.size)
        file.seek(0)

    def read(self, num_bytes: int) -> bytes:
        return self.file.read(max(0, min(num_bytes, self.size - self.file.tell())))

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_END:
            offset, whence = self.size + offset, os.SEEK_SET
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()


class Refused(Exception):
    """What is wrong with the recording."""


class Recording:
    """One audio track of an open file, decoded from its beginning on."""

    def __init__(self, descriptor: int, demuxer: str) -> None:
        self.file = os.fdopen(descriptor, "rb")
        allowed = {
            "format_whitelist": demuxer,
            "codec_whitelist": ",".join(DECODERS),
            "protocol_whitelist": "",
        }
        try:
            content = WithoutTags(self.file)
            self.container = av.open(
                content, "r", format=demuxer, container_options=allowed, metadata_errors="ignore"
            )
        except av.error.InvalidDataError:
            raise Refused(
                UNFINISHED if demuxer == "mov" else "does not decode: its header is damaged"
            ) from None
        if not self.container.streams.audio:
            raise Refused("holds no sound")
        self.stream = self.container.streams.audio[0]
        codec = self.stream.codec_context
        if codec.codec.name not in DECODERS:
            raise Refused(f"is coded as {codec.codec.name}, which is not read here")
        codec.thread_type = "NONE"
        self.rate, self.channels = codec.sample_rate, codec.layout.nb_channels
        self.notes: list[str] = []
        if (tracks := len(self.container.streams.audio)) > 1:
            self.notes.append(f"the first of its {tracks} tracks is read")
        self.num_damaged = 0
        self.converter = av.AudioResampler(format="flt")  # interleaved float32, nothing else is changed
        self.pieces = self.decoded()
        self.rest = b""
        self.num_frames = 0  # read so far

    @property
    def claimed(self) -> int:
        """How many frames there are by the header; 0 where it does not say, or where FFmpeg guesses."""
        if self.container.format.name in GUESSED:
            return 0
        if self.stream.duration and self.stream.time_base:
            return int(self.stream.duration * self.stream.time_base * self.rate)
        return int((self.container.duration or 0) / av.time_base * self.rate)

    def read(self, num_frames: int) -> bytes:
        """So many frames as float32, their channels interleaved; fewer at the end."""
        wanted = num_frames * self.channels * 4
        parts, length = [self.rest], len(self.rest)
        while length < wanted:
            piece = next(self.pieces, b"")
            if not piece:
                break
            parts.append(piece)
            length += len(piece)
        content = b"".join(parts)
        self.rest = content[wanted:]
        self.num_frames += min(length, wanted) // (self.channels * 4)
        return content[:wanted]

    def decoded(self) -> Iterator[bytes]:
        """The frames that can be decoded; damaged packets are passed over and counted."""
        try:
            for packet in self.container.demux(self.stream):
                try:
                    frames = packet.decode()
                except av.error.EOFError:
                    continue
                except av.error.FFmpegError as error:
                    if isinstance(error, MemoryError):
                        raise
                    self.num_damaged += 1
                    continue
                for frame in frames:
                    if (frame.sample_rate, frame.layout.nb_channels) != (self.rate, self.channels):
                        other = f"{frame.layout.nb_channels} channels at {frame.sample_rate} Hz"
                        self.notes.append(f"goes on with {other}, which is not read")
                        return
                    for one in self.converter.resample(frame):
                        yield bytes(one.planes[0])[: one.samples * self.channels * 4]
        except av.error.FFmpegError as error:
            if isinstance(error, MemoryError):
                raise
            self.notes.append(f"breaks off: {str(error.strerror).lower()}")
        finally:
            if self.num_damaged:
                self.notes.append(f"damaged packets left out: {self.num_damaged}")

    def close(self) -> None:
        self.container.close()
        self.file.close()


def limit_memory() -> None:
    """Bound what this process takes, where the system keeps such bounds."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    try:
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
            taken = int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY_BYTES, taken + MEMORY_BYTES))


def limit_time(since: float, num_seconds: float) -> None:
    """End this process by a signal where it computes so long after its processor's time was `since`."""
    most = int(since + num_seconds) + 1
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (most, hard))


def processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # it ends with whoever started it
        signal.signal(number, signal.SIG_IGN)
    limit_memory()
    asking = socket.socket(fileno=int(sys.argv[1]))
    recording: Recording | None = None

    def answer(kind: bytes, content: bytes) -> None:
        asking.sendall(struct.pack("<cI", kind, len(content)) + content)

    def answer_json(kind: bytes, value: Any) -> None:
        answer(kind, json.dumps(value).encode())

    since = 0.0
    while True:
        request, descriptors, _, _ = socket.recv_fds(asking, 4_096, 1)
        if not request:
            return
        asked = json.loads(request)
        try:
            if "demuxer" in asked:
                if recording is not None:
                    recording.close()
                recording, since = None, processor_seconds()
                limit_time(since, SPARE_SECONDS)
                recording = Recording(descriptors[0], asked["demuxer"])
                answer_json(b"J", [recording.rate, recording.channels, recording.claimed])
            elif "frames" in asked and recording is not None:
                limit_time(since, SPARE_SECONDS + recording.num_frames / recording.rate)
                answer(b"B", recording.read(asked["frames"]))
            else:
                answer_json(b"J", recording.notes if recording else [])
                if "close" in asked and recording is not None:
                    recording.close()
                    recording = None
        except MemoryError:
            answer_json(b"E", f"takes more than {MEMORY_BYTES / 2**20:.0f} MB to decode")
        except Refused as error:
            answer_json(b"E", str(error))
        except (av.error.FFmpegError, ValueError) as error:
            answer_json(b"E", f"does not decode: {(getattr(error, 'strerror', None) or str(error)).lower()}")


if __name__ == "__main__":
    main()
