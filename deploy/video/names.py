"""What is a clip, a camera or a pipe, told by its name. Loads nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import PurePath

from cmudrn.errors import EnvironmentMissing

__all__ = ["MUXERS", "STANDARD_INPUT", "is_clip", "is_live", "need_av", "without_password"]

STANDARD_INPUT = "-"
# Suffixes in lower case, and FFmpeg's name of what writes such files. All of them are read, too.
MUXERS: Mapping[str, str] = {
    ".mp4": "mp4",
    ".m4v": "mp4",
    ".mov": "mov",
    ".3gp": "3gp",
    ".mkv": "matroska",
    ".webm": "webm",
    ".avi": "avi",
    ".ts": "mpegts",
    ".m2ts": "mpegts",
    ".mts": "mpegts",
    ".mpg": "mpeg",
    ".mpeg": "mpeg",
    ".flv": "flv",
    ".wmv": "asf",
    ".asf": "asf",
    ".nut": "nut",
    ".mxf": "mxf",
}
LIVE = re.compile(r"(rtsp|rtsps|rtmp|rtmps|rtp|srt|udp|tcp|http|https|lavfi):|/dev/video\d+$")
PASSWORD = re.compile(r"(?<=://)([^/:@]*):[^/]*@")


def is_clip(name: str | PurePath) -> bool:
    """A file of moving pictures, by its suffix."""
    return PurePath(name).suffix.lower() in MUXERS


def is_live(source: str) -> bool:
    """A camera or a stream: frames come when they come, and without an end."""
    return LIVE.match(source) is not None


def without_password(source: str) -> str:
    """An address for people and reports: rtsp://user:secret@host becomes rtsp://user@host."""
    return PASSWORD.sub(r"\1@", source)


def need_av(what: str) -> None:
    """Raises EnvironmentMissing without PyAV. what: it is needed for."""
    if find_spec("av") is None:
        raise EnvironmentMissing(f"{what}: needs PyAV, which is not installed", fix=NO_AV_FIX)


NO_AV_FIX = 'pip install "cmudrn[video]"'
