"""Which encoder and which pixel format write a clip, found by trying them on the container that is wanted."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction

import av
from av.video.format import VideoFormat

from cmudrn.deploy.video.colour import Colour, depth_of, has_alpha
from cmudrn.deploy.video.options import VideoOptions
from cmudrn.errors import ImageError, UsageError
from cmudrn.wording import listed

__all__ = ["EncoderPlan", "Look", "container_takes", "encoder_told", "plan_encoder"]

# The encoder of a codec's family, where its name is another one.
FAMILY: Mapping[str, str] = {
    "h264": "libx264",
    "hevc": "libx265",
    "vp8": "libvpx",
    "vp9": "libvpx-vp9",
    "av1": "libsvtav1",
    "prores": "prores_ks",
}
USUAL = "libx264"
# Near transparent, each on its encoder's own scale.
USUAL_CRF: Mapping[str, int] = {
    "libx264": 18,
    "libx264rgb": 18,
    "libx265": 20,
    "libvpx": 8,
    "libvpx-vp9": 22,
    "libsvtav1": 22,
}
# What an encoder needs besides: VP8 and VP9 take the CRF alone without a bit rate; x265 is talkative on the
# standard error.
NEEDS: Mapping[str, Mapping[str, str]] = {
    "libvpx": {"b": "0", "qmin": "0", "deadline": "good", "cpu-used": "4"},
    "libvpx-vp9": {"b": "0", "row-mt": "1", "deadline": "good", "cpu-used": "4"},
    "libx265": {"x265-params": "log-level=none"},
}
# Without a CRF: a quantiser of 2 throughout, in the units of libavcodec. They would take 200 kbit/s else.
BY_QUANTISER = ("mpeg4", "mpeg2video", "mpeg1video", "mjpeg", "msmpeg4", "wmv1", "wmv2", "flv", "h263")
QUANTISER = {"flags": "+qscale", "global_quality": str(2 * 118)}
# x264 looks 40 frames ahead, half a gigabyte of 4K; it decides as well by fewer where these are so large.
USUAL_LOOKAHEAD = 40
LOOKAHEAD_BYTES = 150_000_000
MOST_TRIES = 6  # formats of one encoder
MUXER_OPTIONS: Mapping[str, Mapping[str, str]] = {"mpegts": {"mpegts_copyts": "1"}}


@dataclass(frozen=True, kw_only=True)
class Look:
    """What the frames of a source are, as they lie in it."""

    height: int  # pixels
    width: int  # pixels
    codec: str  # FFmpeg's name of the codec, not of the decoder
    pix_fmt: str
    time_base: Fraction
    rate: Fraction  # frames a second, on average
    colour: Colour = field(default_factory=Colour)
    pixel_aspect: Fraction | None = None
    matrix: tuple[int, ...] | None = None  # how it is to be turned, for players

    def doubled(self, upright_width: bool) -> Look:
        """Two frames beside each other. upright_width: they lie so in the file, too."""
        if upright_width:
            return replace(self, width=2 * self.width)
        return replace(self, height=2 * self.height)


@dataclass(frozen=True, kw_only=True)
class EncoderPlan:
    """How frames are encoded; tried."""

    encoder: str
    pix_fmt: str
    look: Look
    options: Mapping[str, str]
    colour: Colour

    def add_to(self, container: av.container.OutputContainer) -> av.VideoStream:
        """A stream of this kind."""
        look = self.look
        stream = container.add_stream(self.encoder, rate=look.rate, options=dict(self.options))
        assert isinstance(stream, av.VideoStream)
        context = stream.codec_context
        context.height, context.width, context.pix_fmt = look.height, look.width, self.pix_fmt
        context.time_base = look.time_base
        stream.time_base = look.time_base
        context.color_range, context.colorspace = self.colour.range, self.colour.matrix
        context.color_primaries, context.color_trc = self.colour.primaries, self.colour.transfer
        if look.pixel_aspect:
            context.sample_aspect_ratio = look.pixel_aspect
        if look.matrix:
            stream.set_display_matrix(look.matrix)
        if container.format.name == "avi":  # keeps the order of decoding only
            context.max_b_frames = 0
        return stream

    def muxer_options(self, muxer: str) -> dict[str, str]:
        """Of the container, so that it keeps the timestamps."""
        scale = self.look.time_base
        if muxer in ("mp4", "mov", "3gp") and scale.numerator == 1:
            return {"video_track_timescale": str(scale.denominator)}
        return dict(MUXER_OPTIONS.get(muxer, {}))


def plan_encoder(look: Look, options: VideoOptions, muxer: str) -> EncoderPlan:
    """The encoder that is told, or one of the source's own family, with a format that loses nothing.

    Raises UsageError where the one that is told isn't there, ImageError where none takes such frames.
    """
    if has_alpha(look.pix_fmt) or VideoFormat(look.pix_fmt).has_palette:
        raise ImageError(f"frames of {look.pix_fmt}, which is not read", fix="convert it to yuv444p or gbrp")
    encoders = [encoder_told(options.codec)] if options.codec else _usual(look.codec, muxer)
    refusals = []
    for encoder in encoders:
        for pix_fmt in _formats(encoder, look.pix_fmt)[:MOST_TRIES]:
            plan = _plan(encoder, pix_fmt, look, options)
            if not (why_not := _refusal(plan, muxer)):
                return plan
            refusals.append(f"{encoder} ({pix_fmt}): {why_not}")
        if not refusals:
            refusals.append(f"{encoder} has no pixel format of {depth_of(look.pix_fmt)} bits")
    raise ImageError(
        f"{look.width}x{look.height} {look.pix_fmt} into {muxer}: {listed(refusals, between='; ')}",
        fix="give another --codec, such as libx264, libx265 or ffv1, or another container, such as .mkv",
    )


def container_takes(template: av.stream.Stream, muxer: str) -> bool:
    """Whether a container can hold such a stream, copied as it is."""
    try:
        with av.open(io.BytesIO(), "w", format=muxer) as container:
            container.add_stream_from_template(template)
            container.start_encoding()
    except (av.FFmpegError, ValueError, NotImplementedError):
        return False
    return True


def encoder_told(name: str) -> str:
    """FFmpeg's name of the encoder that `--codec` means. Raises UsageError where there is none."""
    encoder = FAMILY.get(name, name)
    try:
        kind = av.Codec(encoder, "w").type
    except av.codec.codec.UnknownCodecError as exc:
        raise UsageError(
            f"--codec {name}: no such encoder here", fix="libx264, libx265, libsvtav1, libvpx-vp9, ffv1 ..."
        ) from exc
    if kind != "video":
        raise UsageError(f"--codec {name}: encodes {kind}", fix="--codec libx264")
    return encoder


def _usual(codec: str, muxer: str) -> list[str]:
    """The source's family, then the usual one, then the container's own; those that are there."""
    with av.open(io.BytesIO(), "w", format=muxer) as container:
        own = container.default_video_codec
    names = dict.fromkeys((FAMILY.get(codec, codec), USUAL, FAMILY.get(own, own)))
    return [name for name in names if _is_encoder(name)]


def _is_encoder(name: str) -> bool:
    try:
        return av.Codec(name, "w").type == "video"
    except av.codec.codec.UnknownCodecError:
        return False


def _formats(encoder: str, wanted: str) -> list[str]:
    """Those of an encoder that lose no bits, the nearest first, of each kind one."""
    offered = av.Codec(encoder, "w").video_formats or []
    losses = {one.name: loss for one in offered if (loss := _loss(one.name, wanted)) is not None}
    kinds: dict[tuple[int, ...], str] = {}
    for name in sorted(losses, key=losses.__getitem__):
        kinds.setdefault(losses[name], name)
    return list(kinds.values())


def _loss(pix_fmt: str, wanted: str) -> tuple[int, ...] | None:
    """What is lost or wasted in it; None for one that cannot be. Smaller is nearer."""
    ours, theirs = VideoFormat(pix_fmt, 64, 64), VideoFormat(wanted, 64, 64)
    if not ours.components or ours.has_palette or has_alpha(pix_fmt):
        return None
    if depth_of(pix_fmt) < depth_of(wanted) or (pix_fmt.startswith("yuvj") and not wanted.startswith("yuvj")):
        return None
    chroma = _chroma(ours) - _chroma(theirs)
    is_grey = len(theirs.components) == 1
    return (
        int(pix_fmt != wanted),
        int(len(ours.components) < len(theirs.components)),
        -min(chroma, 0) if not is_grey else 0,  # lost
        int(ours.is_rgb is not theirs.is_rgb),
        depth_of(pix_fmt) - depth_of(wanted),
        max(chroma, 0),
    )


def _chroma(of: VideoFormat) -> int:
    return of.chroma_width() * of.chroma_height()


def _plan(encoder: str, pix_fmt: str, look: Look, options: VideoOptions) -> EncoderPlan:
    told = dict(NEEDS.get(encoder, {}))
    if options.crf is not None:
        told["crf"] = str(options.crf)
    elif encoder in USUAL_CRF:
        told["crf"] = str(USUAL_CRF[encoder])
    elif encoder in BY_QUANTISER:
        told |= QUANTISER
    if encoder == USUAL and (frames := LOOKAHEAD_BYTES // _frame_bytes(look, pix_fmt)) < USUAL_LOOKAHEAD:
        told["rc-lookahead"] = str(max(1, frames))
    colour = look.colour
    if VideoFormat(look.pix_fmt).is_rgb and not VideoFormat(pix_fmt).is_rgb:
        colour = colour.for_yuv(look.height, look.width)
    return EncoderPlan(encoder=encoder, pix_fmt=pix_fmt, look=look, options=told, colour=colour)


def _frame_bytes(look: Look, pix_fmt: str) -> int:
    """As the encoder holds it."""
    form = VideoFormat(pix_fmt, look.width, look.height)
    samples = sum(component.width * component.height for component in form.components)
    return int(samples * (1 if depth_of(pix_fmt) == 8 else 2))


def _refusal(plan: EncoderPlan, muxer: str) -> str:
    """Why encoder and container do not take it, in a few words; empty where they do."""
    try:
        with av.open(io.BytesIO(), "w", format=muxer) as container:
            context = plan.add_to(container).codec_context
            container.start_encoding()
            return "it has no --crf" if "crf" in context.options else ""
    except (av.FFmpegError, ValueError) as exc:
        return getattr(exc, "strerror", None) or str(exc)
