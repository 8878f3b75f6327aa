"""The formats of photographs: their suffixes, their first bytes, and how libvips writes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cache

import pyvips

from cmudrn.errors import UsageError

__all__ = [
    "CODECS",
    "LOSSY_QUALITY",
    "READABLE_SUFFIXES",
    "Codec",
    "Encoding",
    "ImageFormat",
    "can_encode",
    "sniff",
    "writable",
]

LOSSY_QUALITY = 95  # JPEG, WebP, AVIF, HEIF; chroma at full resolution where the format has it
PNG_LEVEL = 6  # zlib's own default


class ImageFormat(str, Enum):
    """A format by the name that `--format` takes."""

    JPEG = "jpeg"
    PNG = "png"
    TIFF = "tiff"
    WEBP = "webp"
    AVIF = "avif"
    HEIF = "heif"
    GIF = "gif"

    @property
    def suffix(self) -> str:
        """The suffix for new files, with its dot."""
        return CODECS[self].suffixes[0]

    @property
    def writable(self) -> bool:
        """Whether the libvips at hand can encode it; HEIF often lacks its HEVC encoder."""
        return can_encode(self)

    @classmethod
    def of(cls, suffix: str) -> ImageFormat | None:
        """The format of a suffix such as `.JPG`, or None."""
        return next((form for form, codec in CODECS.items() if suffix.lower() in codec.suffixes), None)


@dataclass(frozen=True)
class Codec:
    """How libvips reads and writes one format, and what the format can hold."""

    suffixes: tuple[str, ...]
    load: str  # libvips' name of the loader is load + "load"; the saver's, load + "save"
    save_options: Mapping[str, object]
    has_16_bits: bool = False
    has_alpha: bool = True
    # libheif turns pictures itself while it decodes, so these are written upright, with no tag.
    has_orientation: bool = True
    has_pages: bool = False  # or frames
    has_profile: bool = True  # ICC; without, the pixels are written as sRGB
    has_xmp: bool = True


_HEIF_OPTIONS = {"Q": LOSSY_QUALITY, "subsample_mode": "off"}
CODECS = {
    # No optimize_coding: it holds all coefficients (on a 40 MP gradient, 627 MB at the peak, not 174).
    ImageFormat.JPEG: Codec(
        (".jpg", ".jpeg"),
        "jpeg",
        {"Q": LOSSY_QUALITY, "subsample_mode": "off"},
        has_alpha=False,
    ),
    # paeth: on a photograph a third smaller than libvips' default of no filter, for 60 % more time.
    ImageFormat.PNG: Codec((".png",), "png", {"compression": PNG_LEVEL, "filter": "paeth"}, has_16_bits=True),
    ImageFormat.TIFF: Codec(
        (".tif", ".tiff"),
        "tiff",
        {"compression": "deflate", "predictor": "horizontal"},
        has_16_bits=True,
        has_pages=True,
    ),
    # exact: keeps the colour under transparent pixels. Lossy WebP is 4:2:0 by its specification.
    ImageFormat.WEBP: Codec(
        (".webp",),
        "webp",
        {"Q": LOSSY_QUALITY, "smart_subsample": True, "exact": True},
        has_pages=True,
    ),
    # At most 12 bits here: 16-bit pixels lose their lowest four.
    ImageFormat.AVIF: Codec(
        (".avif",), "heif", {**_HEIF_OPTIONS, "compression": "av1"}, has_16_bits=True, has_orientation=False
    ),
    ImageFormat.HEIF: Codec(
        (".heic", ".heif"),
        "heif",
        {**_HEIF_OPTIONS, "compression": "hevc"},
        has_16_bits=True,
        has_orientation=False,
    ),
    # 256 colours a frame, as every GIF: a restored photograph has more, and is dithered to them.
    ImageFormat.GIF: Codec(
        (".gif",), "gif", {}, has_orientation=False, has_pages=True, has_profile=False, has_xmp=False
    ),
}


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How well to encode; what a format doesn't know is passed by."""

    quality: int = LOSSY_QUALITY  # 1 to 100, of the lossy formats
    png_level: int = PNG_LEVEL  # of zlib, 0 to 9: how long to look for a shorter file of the same pixels

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 100:
            raise UsageError(
                f"--quality {self.quality}", fix=f"give 1 to 100; {LOSSY_QUALITY} is the default"
            )
        if not 0 <= self.png_level <= 9:
            raise UsageError(f"--png-level {self.png_level}", fix=f"give 0 to 9; {PNG_LEVEL} is the default")

    def save_options(self, image_format: ImageFormat) -> dict[str, object]:
        """For libvips' saver of the format."""
        options = dict(CODECS[image_format].save_options)
        if "Q" in options:
            options["Q"] = self.quality
        if image_format is ImageFormat.PNG:
            options["compression"] = self.png_level
        return options


# Lower case. HEIC stands here although many a libvips has no HEVC decoder: an error beats a file passed by.
READABLE_SUFFIXES: frozenset[str] = frozenset(
    suffix
    for codec in CODECS.values()
    if pyvips.type_find("VipsForeignLoad", f"{codec.load}load_source")
    for suffix in codec.suffixes
)


def writable(suffix: str) -> bool:
    """Whether write_picture can write this suffix (`.png`, `.TIF`) here; a job can ask before it starts."""
    image_format = ImageFormat.of(suffix)
    return image_format is not None and image_format.writable


def sniff(start: bytes) -> ImageFormat | None:
    """The format by its first bytes: libvips' own search would also try SVG, PDF and other loaders."""
    if start.startswith(b"\xff\xd8\xff"):
        return ImageFormat.JPEG
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return ImageFormat.PNG
    if start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return ImageFormat.TIFF
    if start[:6] in (b"GIF87a", b"GIF89a"):
        return ImageFormat.GIF
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return ImageFormat.WEBP
    if start[4:8] == b"ftyp":
        if start[8:12] in (b"avif", b"avis"):
            return ImageFormat.AVIF
        if start[8:12] in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"):
            return ImageFormat.HEIF
    return None


@cache
def can_encode(image_format: ImageFormat) -> bool:
    """Whether the libvips at hand writes the format."""
    # Tried, not looked up: libvips offers heifsave also where libheif has no encoder behind it.
    codec = CODECS[image_format]
    try:
        pyvips.Operation.call(f"{codec.load}save_buffer", pyvips.Image.black(16, 16), **codec.save_options)
    except pyvips.Error:
        return False
    return True
