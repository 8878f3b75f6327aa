"""Options of `cmudrn infer` for clips, streams and cameras."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

from cmudrn.errors import UsageError

if TYPE_CHECKING:
    from cmudrn.deploy.video.options import VideoOptions

__all__ = [
    "Adaptive",
    "ClipEnd",
    "ClipStart",
    "Codec",
    "Crf",
    "Fps",
    "MinLoops",
    "Preview",
    "RawFormat",
    "RawSize",
    "parse_time_s",
    "video_options",
]

CLOCK = re.compile(r"(?:(?:([0-9]{1,4}):)?([0-9]{1,2}):)?([0-9]{1,9}(?:\.[0-9]{1,9})?)")
RAW_SIZE = re.compile(r"([0-9]{1,6})x([0-9]{1,6})")

Codec = Annotated[
    str | None,
    typer.Option(
        "--codec",
        metavar="NAME",
        help="Of clips: libx264, libx265, ffv1 ... by FFmpeg's name. Default: the source's family.",
        show_default=False,
    ),
]
Crf = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Quality of clips on the encoder's scale, 0 is best. Default: near transparent, 18 for libx264.",
        show_default=False,
    ),
]
ClipStart = Annotated[
    str | None,
    typer.Option("--start", metavar="TIME", help="Of clips: seconds, or hh:mm:ss.", show_default=False),
]
ClipEnd = Annotated[
    str | None,
    typer.Option("--end", metavar="TIME", help="The same; of a camera, how long.", show_default=False),
]
Preview = Annotated[bool, typer.Option("--preview", help="Clips side by side: source | restored.")]
Fps = Annotated[
    float | None,
    typer.Option(metavar="N", help="Frames a second to keep up with; with --adaptive.", show_default=False),
]
Adaptive = Annotated[
    bool,
    typer.Option("--adaptive", help="Fewer loops where time does not suffice for --fps, then more again."),
]
MinLoops = Annotated[int, typer.Option(metavar="1..7", help="With --adaptive, never fewer.")]
RawSize = Annotated[
    str | None,
    typer.Option(
        metavar="WIDTHxHEIGHT",
        help="Of raw frames on standard input (SRC is -), as ffmpeg says it. Default: Y4M, which tells it.",
        show_default=False,
    ),
]
RawFormat = Annotated[str, typer.Option(metavar="rgb24|bgr24", help="Of raw frames.")]


def video_options(
    *,
    codec: str | None,
    crf: int | None,
    start: str | None,
    end: str | None,
    preview: bool,
    fps: float | None,
    adaptive: bool,
    min_loops: int,
    raw_size: str | None,
    raw_format: str,
) -> VideoOptions:
    """What was told, checked. Raises UsageError."""
    from cmudrn.cli.values import one_of
    from cmudrn.deploy.video.options import RawFrames, RawOrder, VideoOptions

    order = one_of(RawOrder, "--raw-format", raw_format)
    raw = None
    if raw_size is not None:
        size = RAW_SIZE.fullmatch(raw_size)
        if size is None:
            raise UsageError(f"--raw-size {raw_size}", fix="give WIDTHxHEIGHT like 1280x720")
        raw = RawFrames(width=int(size[1]), height=int(size[2]), order=order)
    return VideoOptions(
        codec=codec,
        crf=crf,
        start_s=0.0 if start is None else parse_time_s("--start", start),
        end_s=None if end is None else parse_time_s("--end", end),
        preview=preview,
        fps=fps,
        adaptive=adaptive,
        min_loops=min_loops,
        raw=raw,
    )


def parse_time_s(option: str, text: str) -> float:
    """`90`, `1:30`, `0:01:30.5` as seconds. Raises UsageError."""
    clock = CLOCK.fullmatch(text.strip())
    if clock is None or (clock[2] and float(clock[3]) >= 60) or (clock[1] and int(clock[2]) >= 60):
        raise UsageError(f"{option} {text}", fix="give seconds like 90 or 12.5, or hh:mm:ss like 0:01:30")
    return int(clock[1] or 0) * 3600 + int(clock[2] or 0) * 60 + float(clock[3])
