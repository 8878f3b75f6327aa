"""Clips that the tests make, and what is in one."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import Type as SideData
from numpy.typing import NDArray

__all__ = ["RGB", "Facts", "facts", "frames_of", "infer_signalled", "make_clip", "picture"]

RGB: Mapping[str, Any] = {"codec": "ffv1", "pix_fmt": "bgr0"}  # without loss, and without YUV
SOUND_RATE = 48_000


def picture(number: int, height: int = 48, width: int = 64) -> NDArray[np.uint8]:
    """[H, W, 3]: every frame another one, with a bright line that wanders."""
    rows, columns = np.mgrid[0:height, 0:width]
    base = 110 + 60 * np.sin(rows / 7 + number / 5)[..., None] + 50 * np.cos(columns / 9)[..., None]
    image = np.repeat(base, 3, axis=2) + np.array([0, 8, -8])
    image[:, (3 * number) % width] += 60
    return np.asarray(np.clip(image, 0, 255).astype(np.uint8))


def make_clip(
    path: Path,
    *,
    times: Sequence[int] | int = 12,
    size: tuple[int, int] = (48, 64),
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    time_base: Fraction = Fraction(1, 12_800),
    rate: int = 25,
    sound: str | None = None,
    subtitles: str | None = None,
    matrix: Sequence[int] | None = None,
    colour: tuple[int, int, int, int] | None = None,  # range, primaries, transfer, matrix
    options: Mapping[str, str] | None = None,
    codec_options: Mapping[str, str] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """A clip of `picture`s. times: each frame's, in units of the time base, or how many there are."""
    step = round(1 / (rate * time_base))
    shown_at = [number * step for number in range(times)] if isinstance(times, int) else list(times)
    with av.open(str(path), "w", options=dict(options or {})) as container:
        container.metadata.update(metadata or {})
        stream: Any = container.add_stream(codec, rate=rate, options=dict(codec_options or {}))
        stream.height, stream.width, stream.pix_fmt = *size, pix_fmt
        stream.codec_context.time_base = stream.time_base = time_base
        context = stream.codec_context
        if colour:
            context.color_range, context.color_primaries, context.color_trc, context.colorspace = colour
        if matrix:
            stream.set_display_matrix(matrix)
        audio: Any = container.add_stream(sound, rate=SOUND_RATE) if sound else None
        if audio:
            audio.metadata["language"] = "deu"
        texts: Any = container.add_stream(subtitles) if subtitles else None
        rng = np.random.default_rng(0)
        seconds = float((shown_at[-1] if shown_at else 0) * time_base) + 1 / rate
        if texts:
            _write_texts(container, texts)
        for number, pts in enumerate(shown_at):
            frame = av.VideoFrame.from_ndarray(picture(number, *size), format="rgb24").reformat(
                format=pix_fmt
            )
            frame.pts, frame.time_base = pts, time_base
            frame.duration = (shown_at[number + 1] if number + 1 < len(shown_at) else pts + step) - pts
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if audio:
            for _ in range(round(seconds * SOUND_RATE) // 1024 + 1):
                noise = rng.normal(0, 0.1, (audio.codec_context.layout.nb_channels, 1024)).astype(np.float32)
                tones = av.AudioFrame.from_ndarray(noise, format="fltp", layout=audio.layout.name)
                tones.rate = SOUND_RATE
                container.mux(audio.encode(tones))
            container.mux(audio.encode(None))
    return path


def _write_texts(container: Any, stream: Any) -> None:
    stream.codec_context.subtitle_header = b"[Script Info]\n"
    for number in range(2):
        packet = av.Packet(f"{number},0,Default,,0,0,0,,rain {number}".encode())
        packet.stream, packet.time_base = stream, Fraction(1, 1000)
        packet.pts = packet.dts = number * 200
        packet.duration = 150
        container.mux(packet)


@dataclass
class Facts:
    """What a clip holds, frames aside."""

    time_base: Fraction
    times: list[int]  # of frames, in the order they are shown
    durations: list[int]
    copied: dict[str, list[tuple[float | None, bytes]]]  # other streams: time and bytes of each packet
    languages: dict[str, str | None]
    colour: tuple[int, int, int, int]
    matrix: tuple[int, ...] | None
    size: tuple[int, int]
    pix_fmt: str
    codec: str
    metadata: dict[str, str]
    duration: int | None


def facts(path: Path) -> Facts:
    """Of the first video stream, and all others."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        copied: dict[str, list[tuple[float | None, bytes]]] = {}
        shown: list[tuple[int, int]] = []
        for packet in container.demux():
            if not packet.size:
                continue
            if packet.stream is stream:
                shown.append((packet.pts if packet.pts is not None else -1, packet.duration or 0))
            else:
                at = None if packet.pts is None else float(packet.pts * packet.time_base)
                copied.setdefault(packet.stream.type, []).append((at, bytes(packet)))
        shown.sort()
        languages = {one.type: one.metadata.get("language") for one in container.streams if one is not stream}
        metadata = dict(container.metadata)
        base = Fraction(stream.time_base or 0)
        duration = container.duration
    first = frames_of(path)[0]
    matrix: Any = first.side_data.get(SideData.DISPLAYMATRIX)
    with av.open(str(path)) as container:
        codec = container.streams.video[0].codec_context.codec.canonical_name
    return Facts(
        time_base=base,
        times=[pts for pts, _ in shown],
        durations=[length for _, length in shown],
        copied=copied,
        languages=languages,
        colour=(first.color_range, first.color_primaries, first.color_trc, first.colorspace),
        matrix=None if matrix is None else tuple(int(one) for one in np.frombuffer(bytes(matrix), np.int32)),
        size=(first.height, first.width),
        pix_fmt=first.format.name,
        codec=codec,
        metadata=metadata,
        duration=duration,
    )


def frames_of(path: Path) -> list[Any]:
    """PyAV's, decoded."""
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


def infer_signalled(
    folder: Path, *arguments: str, number: signal.Signals = signal.SIGINT, after_s: float = 0.0
) -> tuple[int, str]:
    """`cmudrn infer` there, told to end `after_s` after it began to write: exit code and standard error."""
    process = subprocess.Popen(
        [sys.executable, "-m", "cmudrn", "infer", *arguments],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 60
    while not list(folder.glob(".*.part")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(after_s)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    return process.returncode, said
