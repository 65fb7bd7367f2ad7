"""What a file is by its first bytes, whatever its name says."""

import re
from collections import Counter
from typing import BinaryIO, NamedTuple

# What people keep recordings in: files of other names in a folder are not looked at.
AUDIO_SUFFIXES = frozenset(
    "3ga 3gp 3gpp aac ac3 aif aifc aiff amr ape au awb caf eac3 flac m4a m4b m4r m4v mka mkv mov mp2 mp3 mp4 "
    "mpc mpga nist oga ogg opus rf64 snd sph spx tta w64 wav wave weba webm wma wv".split()
)


class Format(NamedTuple):
    """A format of recordings."""

    name: str
    demuxer: str  # FFmpeg's name of it
    is_libsndfiles: bool = True  # whether libsndfile reads it, if not with all codecs


MP3 = Format("MP3", "mp3")
BARE_MP3 = Format("MP3 behind other bytes", "mp3", False)
# How a file begins, as a regular expression: what it is. The first that fits counts.
FORMATS = {
    rb"(RIFF|RIFX|RF64)....WAVE": Format("WAV", "wav"),
    rb"riff\x2e\x91\xcf\x11": Format("Wave64", "w64"),
    rb"FORM....AIF[FC]": Format("AIFF", "aiff"),
    rb"\.snd|dns\.": Format("AU", "au"),
    rb"caff": Format("CAF", "caf"),
    rb"fLaC": Format("FLAC", "flac"),
    rb"OggS": Format("Ogg", "ogg"),
    rb"NIST_1A": Format("NIST SPHERE", "nistsphere"),
    rb"....(ftyp|moov|mdat|wide|free|skip|pnot)": Format("MP4 or QuickTime", "mov", False),
    rb"\x1a\x45\xdf\xa3": Format("WebM or Matroska", "matroska", False),
    rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11": Format("WMA (ASF)", "asf", False),
    rb"#!AMR": Format("AMR", "amr", False),
    rb"MAC ": Format("Monkey's Audio", "ape", False),
    rb"wvpk": Format("WavPack", "wv", False),
    rb"TTA1": Format("TTA", "tta", False),
    rb"MPCK": Format("Musepack", "mpc8", False),
    rb"MP\+": Format("Musepack", "mpc", False),
    rb"\x0b\x77...[\x00-\x57]": Format("AC-3", "ac3", False),  # from 0x58 on it is E-AC-3
    rb"\x0b\x77": Format("E-AC-3", "eac3", False),
    rb"ADIF|\xff[\xf0\xf1\xf8\xf9]": Format("AAC", "aac", False),  # of MPEG's sync words those of layer 0
    rb"\xff[\xe2-\xe7\xf2-\xf7\xfa-\xfd]": MP3,  # not ff fe, which begins UTF-16
}
OTHERS = {
    rb"version https://git-lfs": "a Git LFS pointer, not the file: fetch it with git lfs pull",
    rb"(?i)(\xef\xbb\xbf)?\s*<(!doctype|html)": "a web page, not audio: the download went wrong",
    rb"#EXTM3U|\[playlist\]": "a playlist, not audio",
    rb"MThd": "MIDI: notes, not audio",
    rb"\x89PNG|\xff\xd8\xff|GIF8": "a picture, not audio",
    rb"%PDF": "a PDF, not audio",
    rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf|Rar!|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd": "an archive: unpack it",
    rb"\x93NUMPY": "a NumPy array, not audio: write it as a .wav",
    rb"\x00{64}|\x00+\Z": "of no format: it begins with zeros",
    rb"\xff\xfe|\xfe\xff": "text, not audio",
    rb"[\t\n\r\f\x20-\x7e]+\Z": "text, not audio",
}
COMPILED = {re.compile(how, re.DOTALL): what for how, what in (FORMATS | OTHERS).items()}
HEAD_BYTES = 64
MP3_SYNC = re.compile(rb"\xff[\xe2-\xe7\xf2-\xf7\xfa-\xfd]")
SEARCHED_BYTES = 2**14
LEAST_FRAMES = 3  # of an MP3, whose first bytes are alike: fewer may be a coincidence


def format_of(file: BinaryIO) -> tuple[Format | str, int]:
    """The format of an open file, and where it begins, behind a tag; or what it is instead."""
    head = file.read(HEAD_BYTES)
    if head[:3] == b"ID3" and len(head) > 10:  # a tag, whose length has 7 bits in each byte
        a, b, c, d = head[6:10]
        start = file.seek(10 + (a << 21 | b << 14 | c << 7 | d))
        behind = file.read(HEAD_BYTES)
        return next((what for how, what in FORMATS.items() if re.match(how, behind, re.DOTALL)), MP3), start
    if not head:
        return "empty", 0
    found = next((what for how, what in COMPILED.items() if how.match(head)), "of no format known here")
    if isinstance(found, str) and "format" in found and num_mp3_frames(head + file.read(SEARCHED_BYTES)):
        return BARE_MP3, 0
    return found, 0


def num_mp3_frames(content: bytes, start: int = 0) -> int:
    """About how many frames of an MP3 begin in the content from `start` on, if there are any; else 0."""
    begins = Counter(MP3_SYNC.findall(content)).most_common(1)
    count = content.count(begins[0][0], start) if begins else 0
    return count if count >= LEAST_FRAMES else 0
