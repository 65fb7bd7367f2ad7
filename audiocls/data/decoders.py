"""Bytes or a path -> an open recording to read frames from: libsndfile decodes, or else FFmpeg."""

import contextlib
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import soundfile

from audiocls.data import ffmpeg
from audiocls.data.limits import NOT_THERE, BadAudio, UnreadableAudio, check_format
from audiocls.data.riff import Spliced, repaired
from audiocls.data.signatures import MP3, Format, format_of, num_mp3_frames
from audiocls.storage import NotRegular, open_regular
from audiocls.streams import quiet_stderr

# What of libsndfile's is decoded, after its names: the containers and codecs of recordings, and no rarities.
CONTAINERS = set("AIFF AU CAF FLAC MP3 NIST OGG RF64 W64 WAV WAVEX".split())
CODECS = set(
    "ALAC_16 ALAC_20 ALAC_24 ALAC_32 ALAW DOUBLE FLOAT GSM610 IMA_ADPCM MPEG_LAYER_I MPEG_LAYER_II "
    "MPEG_LAYER_III MS_ADPCM OPUS PCM_16 PCM_24 PCM_32 PCM_S8 PCM_U8 ULAW VORBIS".split()
)
NO_LENGTH = 2**60  # frames: libsndfile's words for not knowing
UNSAID_FRAMES = 2**16  # asked for at a time, where the length is not known
MP3_FRAME = 1_152  # samples at most
MOST_ERRORS = 100
READ_AHEAD = 2**14  # bytes that libsndfile may have read beyond what it decoded
OGG_PAGE = re.compile(rb"OggS\x00[\x00\x01\x04\x05]")
OGG_FIRST_PAGE = re.compile(rb"OggS\x00[\x02\x03\x06\x07]")
FLAC_HEADER = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")
MP3_LENGTH = re.compile(rb"Xing|Info|VBRI")  # in its first frame
FRAME_BYTES = 256


class Reader(Protocol):
    """An open recording, read on and on."""

    rate: int  # Hz
    channels: int
    claimed: int  # frames by its header; 0 where it does not say
    is_length_sure: bool  # whether that is no claim of a header

    def read(self, frames: int) -> np.ndarray:
        """float32 [frames, channels], so many frames; fewer at the end of what can be decoded."""

    @property
    def notes(self) -> list[str]:
        """Why what was read may not be all that was recorded, once the end was read."""


@contextlib.contextmanager
def open_audio(audio: Path | bytes, to_rate: int) -> Iterator[Reader]:
    """A recording that can be resampled to `to_rate`, open to be read; what goes wrong within is BadAudio."""
    if isinstance(audio, Path) and "\0" in str(audio):
        raise BadAudio("has a NUL in its name")
    try:
        with contextlib.ExitStack() as stack:
            # Without a buffer: where it is read, and how far, is the same for libsndfile and for us.
            file: Any = io.BytesIO(audio) if isinstance(audio, bytes) else open_regular(audio).detach()
            stack.enter_context(file)
            reader = reader_of(file, stack)
            check_format(reader.rate, reader.channels, to_rate)
            yield reader
    except FileNotFoundError:
        raise BadAudio(NOT_THERE) from None
    except NotRegular:
        raise BadAudio("is not a regular file") from None
    except OSError as error:
        raise UnreadableAudio(f"cannot be read: {(error.strerror or str(error)).lower()}") from None


def reader_of(file: BinaryIO, stack: contextlib.ExitStack) -> Reader:
    """Whatever decodes the file; `stack` will close it. Raises BadAudio."""
    format, start = format_of(file)
    if isinstance(format, str):
        raise BadAudio(f"is {format}")
    if not format.is_libsndfiles:
        if not ffmpeg.is_installed():
            raise BadAudio(
                f"is {format.name}, which libsndfile does not read: {ffmpeg.TO_INSTALL} "
                "(or convert it: ffmpeg -i FILE FILE.wav)"
            )
        return open_ffmpeg(file, format, stack)
    try:
        reader = SoundFileReader(file, format, start, stack)
        if reader.sound.frames or format.name == "WAV" or not ffmpeg.is_installed():
            return reader
        refusal = BadAudio("holds no audio")
    except UnreadableAudio:
        raise
    except BadAudio as error:
        refusal = error
    if ffmpeg.is_installed():
        with contextlib.suppress(BadAudio):
            return open_ffmpeg(file, format, stack)
    raise refusal


def open_ffmpeg(file: BinaryIO, format: Format, stack: contextlib.ExitStack) -> ffmpeg.FFmpegReader:
    return ffmpeg.FFmpegReader(stack.enter_context(ffmpeg.processes.lent()), file, format)


class Forward(soundfile.SoundFile):
    """A file that is read on and on: soundfile would seek after each read, which a damaged one cannot."""

    def seekable(self) -> bool:
        return False


class SoundFileReader:
    """A recording that libsndfile decodes; what it leaves, FFmpeg reads, if it is installed."""

    def __init__(self, file: BinaryIO, format: Format, start: int, stack: contextlib.ExitStack) -> None:
        """`start` is where it begins in the file. Raises BadAudio where libsndfile does not read it."""
        self.file, self.format, self.start, self.stack = file, format, start, stack
        self.position = 0  # in frames, of what libsndfile gave
        self.has_ended = False
        self.errors: list[str] = []
        self.goes_on = False  # whether more follows in the file, behind its end
        self.beyond: ffmpeg.FFmpegReader | None = None
        self.odd: list[str] = []  # of its header
        mended: Spliced | None = None
        if format.name == "WAV":
            mended, self.odd = repaired(file)
        self.open(mended)
        if format.name == "WAV" and not mended and self.sound.frames == 0:
            mended, self.odd = repaired(file, is_empty=True)
            if mended:
                self.open(mended)
        self.rate, self.channels = self.sound.samplerate, self.sound.channels
        # libmpg123 writes of each broken frame.
        self.quiet = quiet_stderr if self.sound.subtype.startswith("MPEG") else contextlib.nullcontext
        # Where libsndfile believes that it ends: beyond that it gives nothing.
        self.end = self.sound.frames if self.sound.frames < NO_LENGTH else 0
        self.claimed = self.end if self.says_its_length() else 0
        self.is_length_sure = format.name == "Ogg"  # where the last page lies

    def open(self, mended: Spliced | None) -> None:
        self.file.seek(0)
        # A file by its descriptor: libsndfile then reads it without Python, and closes what it is given.
        source = mended or (os.dup(self.file.fileno()) if ffmpeg.has_descriptor(self.file) else self.file)
        try:
            with quiet_stderr():
                self.sound = self.stack.enter_context(Forward(source))
        except soundfile.LibsndfileError as error:
            kind = UnreadableAudio if error.code == 2 else BadAudio  # 2: the system failed, not the format
            raise kind(f"does not decode: {said(error)}") from None
        if self.sound.format not in CONTAINERS or self.sound.subtype not in CODECS:
            raise BadAudio(
                f"is {self.sound.format} with {self.sound.subtype}, which is not read here "
                "(convert it: ffmpeg -i FILE FILE.wav)"
            )

    def says_its_length(self) -> bool:
        """Whether its length is written in it; of an MP3 it may be a guess from the first frames."""
        if self.format is not MP3:
            return True
        here = self.file.tell()  # where libsndfile reads on
        self.file.seek(self.start)
        first_frame = self.file.read(FRAME_BYTES)
        self.file.seek(here)
        return MP3_LENGTH.search(first_frame) is not None

    def read(self, frames: int) -> np.ndarray:
        """As in Reader."""
        made = []
        while frames and not self.has_ended:
            made.append(self.read_once(frames))
            frames -= len(made[-1])
            if self.has_ended:
                self.look_behind()
        if frames and self.beyond is not None:
            made.append(self.beyond.read(frames))
        if self.errors and self.frames_read == 0:
            raise BadAudio(f"does not decode: {self.errors[0]}")
        if not made:
            return np.zeros((0, self.channels), np.float32)
        return made[0] if len(made) == 1 else np.concatenate(made)

    @property
    def frames_read(self) -> int:
        return self.position if self.beyond is None else max(self.position, self.beyond.position)

    def read_once(self, frames: int) -> np.ndarray:
        """What libsndfile gives of so many frames before it ends or stumbles."""
        is_bounded = self.end > 0 and self.format is not MP3  # an MP3 may go on a little
        left = self.end - self.position
        asked = min(frames, left) if is_bounded else min(frames, max(left + MP3_FRAME, UNSAID_FRAMES))
        # An error does not say how much was decoded before it.
        block = np.full((asked, self.channels), np.nan, np.float32)
        try:
            with self.quiet():
                block = self.sound.read(out=block)
            self.has_ended = len(block) < asked or (is_bounded and asked == left)
        except soundfile.LibsndfileError as error:
            decoded = ~np.isnan(block[:, 0])
            block = block[: len(block) if decoded.all() else int(decoded.argmin())]
            self.errors.append(said(error))
            # libmpg123 may go on behind the damage, but does not say how much is lost.
            self.has_ended = ffmpeg.is_installed() or len(self.errors) == MOST_ERRORS
        self.position += len(block)
        return block

    def look_behind(self) -> None:
        """Have FFmpeg read on where libsndfile has left something."""
        self.goes_on = self.format.name in ("Ogg", "FLAC", "MP3") and self.more_follows()
        if not (self.goes_on or self.errors) or not ffmpeg.is_installed():
            return
        with contextlib.suppress(BadAudio):
            reader = open_ffmpeg(self.file, self.format, self.stack)
            if (reader.rate, reader.channels) == (self.rate, self.channels):
                while reader.position < self.position:
                    to_skip = min(self.position - reader.position, UNSAID_FRAMES)
                    if len(reader.read(to_skip)) < to_skip:
                        break
                self.beyond = reader

    def more_follows(self) -> bool:
        """Whether another recording begins, or frames follow, about where libsndfile has ended."""
        here = self.file.tell()
        begin = max(self.start + 4, here - READ_AHEAD)
        self.file.seek(begin)
        content = self.file.read(max(0, here - begin) + READ_AHEAD)
        if self.format is MP3:
            behind = max(0, here - begin)
            return behind < len(content) and num_mp3_frames(content, behind) > 0
        if self.format.name == "FLAC":
            return FLAC_HEADER.search(content) is not None
        page = OGG_PAGE.search(content)
        return page is not None and OGG_FIRST_PAGE.search(content, page.end()) is not None

    @property
    def notes(self) -> list[str]:
        """As in Reader."""
        notes = list(self.odd)
        seconds, claimed = self.frames_read / self.rate, self.claimed / self.rate
        lacks = self.has_ended and seconds < claimed - ffmpeg.NEARLY_SECONDS
        is_all_read = self.beyond is not None and self.beyond.position > self.position
        if self.errors or lacks:
            notes.append(ffmpeg.damage_note(seconds, claimed))
        elif self.goes_on and (self.claimed or not is_all_read):
            end, how = self.position / self.rate, "is read, too" if is_all_read else "is not read"
            notes.append(f"more follows in its file behind its end at {end:.1f} s, and {how}")
        if (self.errors or self.goes_on) and not ffmpeg.is_installed():
            notes[-1] += f" (FFmpeg may read more: {ffmpeg.TO_INSTALL})"
        return notes + ([] if self.beyond is None else self.beyond.packet_notes)


def said(error: soundfile.LibsndfileError) -> str:
    """libsndfile's words for it, but for some that say something else."""
    words = error.error_string.strip().rstrip(".").lower().removeprefix("error : ")
    return "its header is damaged" if "regular file" in words or "malformed" in words else words
