"""From a `Picture` to a file, whole or not at all, with what it brought along."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyvips

from cmudrn.errors import ImageError
from cmudrn.files import replacing
from cmudrn.formats import CODECS, Codec, Encoding, ImageFormat
from cmudrn.images.carriers import Extras, put_extras
from cmudrn.images.chunks import COLOUR_CHUNKS
from cmudrn.images.exif import PREFIX, with_orientation, without_thumbnail
from cmudrn.images.failures import failing_as_image_error, other_format
from cmudrn.images.photoshop import IPTC_FIELD, JPEG_MARK, RESOURCES_FIELD, iptc_in, resources_in
from cmudrn.images.picture import Picture, Pixels
from cmudrn.images.provenance import Provenance, with_provenance
from cmudrn.images.turning import laid_down

__all__ = ["Keeping", "need_room", "write_picture"]

# libvips' flags of what a file is to hold. EXIF goes past it; a gain map belongs to the pixels that were.
KEEP_EXIF, KEEP_THE_REST = 1, 2 | 4 | 8 | 16
KEPT_WHEN_STRIPPED = ("icc-profile-data", "delay", "loop")
# One segment, less its mark and length. libvips would leave out without a word what is longer.
MOST_BYTES_IN_JPEG = {"EXIF": 65_533 - 6, "XMP": 65_533 - 29}
SRGB_GAMMA = 45_455  # in a PNG's units
NO_RESOLUTION = (1.0, 1.0)  # for libvips, which knows no other way; taken out of the file again


@dataclass(frozen=True)
class Keeping:
    """What goes into a file beside the pixels."""

    strip: bool = False  # nothing but what the pixels need: ICC profile, orientation, a film's times
    provenance: Provenance | None = None  # into XMP, stripped or not


KEEP_ALL = Keeping()
USUAL = Encoding()


def write_picture(
    picture: Picture,
    path: str | os.PathLike[str],
    keeping: Keeping = KEEP_ALL,
    encoding: Encoding = USUAL,
) -> None:
    """Write a file whole or not at all; the suffix chooses the format. It gets the time of the picture's.

    16 bits become 8 in JPEG, WebP and GIF, as round(value / 257), and 12 in AVIF and HEIF.
    Raises ImageError for a suffix that cannot be written, for what the format cannot hold (alpha, pages), a
    full disk and the like.
    """
    path = Path(path)
    image_format = need_room(picture, path, keeping)
    with failing_as_image_error(path, "write"), replacing(path, durable=False) as file:
        _encode(picture, path, image_format, file, keeping, encoding)
        if picture.modified_ns is not None and not keeping.strip:
            os.utime(file.name, ns=(time.time_ns(), picture.modified_ns))


def _encode(
    picture: Picture,
    path: Path,
    image_format: ImageFormat,
    file: BinaryIO,
    keeping: Keeping,
    encoding: Encoding,
) -> None:
    codec = CODECS[image_format]
    exif, fields = _exif(picture, codec, keeping), _fields(picture, codec, keeping)
    if image_format is ImageFormat.JPEG:
        _need_short(path, EXIF=exif, XMP=fields.get("xmp-data"))
    options = encoding.save_options(image_format)
    if picture.pixels.dtype == np.uint16 and codec.load == "heif":
        options["bitdepth"] = 12
    if codec.load == "tiff":
        options["bigtiff"] = picture.pixels.nbytes > 2**31  # classic TIFF ends at 4 GB, metadata included
    # libheif makes an item for EXIF where libvips writes one: its content is replaced afterwards.
    options["keep"] = KEEP_THE_REST | (KEEP_EXIF if exif and codec.load == "heif" else 0)
    xmp = fields.pop("xmp-data", None) if image_format is ImageFormat.PNG else None
    image = _as_stored(picture, codec)
    for name, value in fields.items():
        image.set_type(_gtype(value), name, value)
    if exif and codec.load == "heif":
        image.set_type(pyvips.GValue.blob_type, "exif-data", PREFIX + exif)
    # A descriptor, never a name: libvips takes `[...]` in a name for options.
    target = pyvips.Target.new_to_descriptor(file.fileno())
    pyvips.Operation.call(f"{codec.load}save_target", image, target, **options)
    chunks = picture.chunks if picture.format is image_format else ()
    chunks = [one for one in chunks if not keeping.strip or one[0] in COLOUR_CHUNKS]
    extras = Extras(
        exif=exif,
        tiff_iptc=iptc_in(resources_in(fields)) if image_format is ImageFormat.TIFF else b"",
        png_xmp=xmp if isinstance(xmp, bytes) else None,
        chunks=chunks,
        resolution=None if keeping.strip else picture.resolution,
    )
    put_extras(file, image_format, extras)


def need_room(picture: Picture, path: Path, keeping: Keeping = KEEP_ALL) -> ImageFormat:
    """The format of the suffix. Raises ImageError where it cannot be written, or cannot hold the picture."""
    image_format = ImageFormat.of(path.suffix)
    if image_format is None or not image_format.writable:
        raise ImageError(f"{path}: cannot write {path.suffix or 'a name without suffix'}", fix=other_format())
    codec = CODECS[image_format]
    if picture.alpha is not None and not codec.has_alpha:
        raise ImageError(f"{path}: {image_format.value} has no transparency", fix="use --format png")
    if picture.pages > 1 and not codec.has_pages:
        raise ImageError(
            f"{path}: {image_format.value} holds one page, the picture has {picture.pages}",
            fix="use --format tiff, or webp for a film",
        )
    if keeping.provenance is not None and not codec.has_xmp:
        raise ImageError(
            f"{path}: {image_format.value} has no room for --provenance", fix="use --format webp"
        )
    if (
        image_format is ImageFormat.GIF
        and picture.alpha is not None
        and np.any(picture.alpha % _peak(picture))
    ):
        raise ImageError(f"{path}: gif has no half transparent pixels", fix="use --format webp")
    gamma = dict(picture.chunks).get(b"gAMA")
    if gamma and image_format is not ImageFormat.PNG and "icc-profile-data" not in picture.metadata:
        value = int.from_bytes(gamma, "big")
        if abs(value - SRGB_GAMMA) > SRGB_GAMMA // 100:
            raise ImageError(
                f"{path}: only png can say the gamma of this picture, {value / 100_000:g}",
                fix="leave --format away, or convert the picture to sRGB",
            )
    return image_format


def _exif(picture: Picture, codec: Codec, keeping: Keeping) -> bytes | None:
    if codec.load == "gif":
        return None
    block = None if picture.exif is None or keeping.strip else without_thumbnail(picture.exif)
    if codec.load == "tiff":
        return block  # libvips writes the tag of the orientation
    return with_orientation(block, picture.orientation if codec.has_orientation else 1)


def _fields(picture: Picture, codec: Codec, keeping: Keeping) -> dict[str, object]:
    """What libvips is to write."""
    fields: dict[str, object] = dict(picture.metadata)
    if keeping.strip:
        fields = {name: value for name, value in fields.items() if name in KEPT_WHEN_STRIPPED}
    resources = resources_in(fields)
    fields = {name: value for name, value in fields.items() if name not in (IPTC_FIELD, RESOURCES_FIELD)}
    if resources and codec.load == "jpeg":
        fields[IPTC_FIELD] = JPEG_MARK + resources
    elif resources and codec.load == "tiff":
        fields[RESOURCES_FIELD] = resources
    fields["orientation"] = picture.orientation if codec.has_orientation else 1
    if keeping.provenance is not None:
        packet = fields.get("xmp-data")
        fields["xmp-data"] = with_provenance(
            packet if isinstance(packet, bytes) else None, keeping.provenance
        )
    return fields


def _need_short(path: Path, **blocks: object) -> None:
    for name, block in blocks.items():
        if isinstance(block, bytes) and len(block) > MOST_BYTES_IN_JPEG[name]:
            raise ImageError(
                f"{path}: its {name} has {len(block):,} bytes, a JPEG holds {MOST_BYTES_IN_JPEG[name]:,}",
                fix="use --format png or tiff, or --strip",
            )


def _as_stored(picture: Picture, codec: Codec) -> Any:
    """A lazy pyvips image as it shall lie in the file; copies the pixels only to turn them."""
    orientation = picture.orientation if codec.has_orientation else 1
    pixels = laid_down(picture.pixels, orientation)
    image = _vips(pixels)
    if picture.is_grey:
        image = image.bandmean()  # integer, rounded
    if picture.alpha is not None:
        image = image.bandjoin(_vips(laid_down(picture.alpha[..., None], orientation)))
    if not codec.has_profile and isinstance(profile := picture.metadata.get("icc-profile-data"), bytes):
        image.set_type(pyvips.GValue.blob_type, "icc-profile-data", profile)
        image = image.icc_transform("srgb", embedded=True, depth=8 if image.format == "uchar" else 16)
    if image.format == "ushort" and not codec.has_16_bits:
        image = (image / 257).rint().cast("uchar")
    spaces = ("srgb", "b-w") if image.format == "uchar" else ("rgb16", "grey16")
    is_grey = image.bands < 3
    xres, yres = picture.resolution or NO_RESOLUTION
    image = image.copy(interpretation=spaces[is_grey], xres=xres, yres=yres)
    if picture.pages > 1:
        image.set_type(pyvips.GValue.gint_type, "page-height", pixels.shape[-3])
    return image


def _vips(pixels: Pixels) -> Any:
    """Pages stand one below the other, as libvips has them."""
    pixels = np.ascontiguousarray(pixels)
    height, width, bands = pixels.size // (pixels.shape[-2] * pixels.shape[-1]), *pixels.shape[-2:]
    band_format = "ushort" if pixels.dtype == np.uint16 else "uchar"
    return pyvips.Image.new_from_memory(pixels, width, height, bands, band_format)


def _peak(picture: Picture) -> int:
    return int(np.iinfo(picture.pixels.dtype).max)


def _gtype(value: object) -> Any:
    if isinstance(value, bytes):
        return pyvips.GValue.blob_type
    if isinstance(value, list):
        return pyvips.GValue.array_int_type
    return pyvips.GValue.refstr_type if isinstance(value, str) else pyvips.GValue.gint_type
