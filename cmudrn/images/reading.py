"""From a file to a `Picture`, upright, with all that is not pixels beside it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyvips

from cmudrn.errors import ImageError, ImageTooLarge
from cmudrn.formats import CODECS, ImageFormat, sniff
from cmudrn.images.chunks import Chunk
from cmudrn.images.contents import Contents, contents_of
from cmudrn.images.exif import orientation_in, with_orientation, without_prefix
from cmudrn.images.failures import failing_as_image_error
from cmudrn.images.picture import Header, Metadata, Picture, Pixels
from cmudrn.images.turning import turned
from cmudrn.wording import counted

__all__ = ["DEFAULT_MAX_PIXELS", "read_header", "read_picture"]

# 400 million pixels are 1.2 GB at 8 bits: above any camera, below what a small file may claim to unpack to.
DEFAULT_MAX_PIXELS = 400_000_000
# A CMYK profile has 3 MB, an editor's history in XMP a few. It lies in memory beside the pixels, uncounted.
MAX_METADATA_BYTES = 32 * 2**20

_KEPT_FIELDS = (  # and all that begin so
    *("icc-profile-data", "xmp-data", "iptc-data", "photoshop-data", "image-description"),
    *("orientation", "resolution-unit", "delay", "loop"),
)
_IN_HEIF = (ImageFormat.AVIF, ImageFormat.HEIF)
_ANIMATED = (ImageFormat.GIF, ImageFormat.WEBP)


def read_header(
    path: str | os.PathLike[str], *, max_pixels: int = DEFAULT_MAX_PIXELS, max_pages: int = 1
) -> Header:
    """Read the size of an image and decode nothing.

    Raises ImageError for a file that read_picture would refuse by its header, ImageTooLarge by its size.
    """
    path = Path(path)
    with failing_as_image_error(path, "read"), path.open("rb", buffering=0) as file:
        opened = _Opened(file, path, max_pixels, max_pages)
        image, swapped = opened.image, opened.orientation >= 5
    page_height = image.height // opened.pages
    height, width = (image.width, page_height) if swapped else (page_height, image.width)
    return Header(path, height, width, opened.pages)


def read_picture(
    path: str | os.PathLike[str], *, max_pixels: int = DEFAULT_MAX_PIXELS, max_pages: int = 1
) -> Picture:
    """Decode an image of 8 or 16 bits: RGB, grey, palette or CMYK (as sRGB), with alpha or without.

    max_pages: where more than one is allowed, the pixels of a file of several have a dimension more.
    One decoded copy stays in memory; alpha or a turn takes a second one for a moment.
    Raises ImageError for a file that is missing, damaged, of too many pages or of another kind of pixel,
    ImageTooLarge for one of more than max_pixels, all pages together, before it is decoded.
    """
    path = Path(path)
    with failing_as_image_error(path, "read"), path.open("rb", buffering=0) as file:
        opened = _Opened(file, path, max_pixels, max_pages)
        modified_ns = os.fstat(file.fileno()).st_mtime_ns
        image, orientation, exif = opened.image, opened.orientation, opened.exif
        metadata = _kept_metadata(image)
        if (
            opened.contents.parts.xmp
        ):  # libvips looks before a PNG's pixels alone, and takes parts for the whole
            metadata = {**metadata, "xmp-data": opened.contents.parts.xmp}
        if opened.format in _IN_HEIF:
            metadata = {**metadata, "orientation": 1}
            exif = exif and with_orientation(exif, 1)
        if image.interpretation == "cmyk":
            # It describes ink, the pixels are sRGB now.
            metadata = {name: value for name, value in metadata.items() if name != "icc-profile-data"}
        _check_size_beside_pixels(path, metadata, exif, opened.contents.parts.chunks)
        stored = _decode(_as_rgb(image), opened.pages)
    alpha = stored[..., 3:] if stored.shape[-1] == 4 else None
    return Picture(
        pixels=np.ascontiguousarray(turned(stored[..., :3], orientation)),
        alpha=None if alpha is None else np.ascontiguousarray(turned(alpha, orientation)[..., 0]),
        format=opened.format,
        is_grey=image.interpretation in ("b-w", "grey16"),
        orientation=orientation,
        resolution=opened.resolution,
        metadata=metadata,
        exif=exif,
        chunks=opened.contents.parts.chunks,
        modified_ns=modified_ns,
    )


class _Opened:
    """A file that libvips has looked into, checked as far as its header goes; `image` is lazy, as stored."""

    def __init__(self, file: BinaryIO, path: Path, max_pixels: int, max_pages: int) -> None:
        self.format = _format_of(file, path)
        self.contents = contents_of(file, self.format)
        image = _load(file, self.format)
        self.pages = _pages(image, self.format, self.contents, path, max_pages)
        if self.pages * image.width * image.height > max_pixels:
            raise ImageTooLarge(_too_large(image, self.pages, path, max_pixels), fix=_RAISE_LIMIT)
        self.image = image if self.pages == 1 else _load(file, self.format, n=-1)
        _check_pixels(self.image, path)
        self._fields = set(image.get_fields())

    @property
    def orientation(self) -> int:
        """EXIF orientation of the pixels as decoded: 1 after libheif, which has turned them already."""
        if not CODECS[self.format].has_orientation:
            return 1
        if self.format is ImageFormat.TIFF:
            value = int(self.image.get("orientation")) if "orientation" in self._fields else 1
        else:
            value = orientation_in(self.exif)
        return value if 1 <= value <= 8 else 1

    @property
    def exif(self) -> bytes | None:
        if self.contents.parts.exif or "exif-data" not in self._fields:
            return self.contents.parts.exif
        return without_prefix(self.image.get("exif-data")) or None

    @property
    def resolution(self) -> tuple[float, float] | None:
        """None where the file says none; libvips has a default of its own for each format."""
        if self.format is ImageFormat.PNG:
            says = self.contents.parts.says_resolution
        else:
            says = "resolution-unit" in self._fields
        return (self.image.xres, self.image.yres) if says else None


_RAISE_LIMIT = "raise --max-pixels if you trust the file"


def _format_of(file: BinaryIO, path: Path) -> ImageFormat:
    start = file.read(16)
    image_format = sniff(start)
    if image_format is None:
        what = "an image of a known format" if start else "an image: the file is empty"
        raise ImageError(f"{path}: not {what}", fix="give JPEG, PNG, TIFF, WebP, GIF, AVIF or HEIF files")
    return image_format


def _load(file: BinaryIO, image_format: ImageFormat, **options: object) -> Any:
    file.seek(0)
    source = pyvips.Source.new_from_descriptor(file.fileno())
    # fail_on error includes truncated, and checks PNG's checksums; "warning" refuses sound files.
    options = {"access": "sequential", "fail_on": "error", **options}
    if image_format is ImageFormat.TIFF and pyvips.at_least_libvips(8, 17):
        # libtiff's own bound, 50 MB, refuses sound files: one compressed strip of 24 megapixels.
        options["unlimited"] = True
    return pyvips.Operation.call(f"{CODECS[image_format].load}load_source", source, **options)


def _pages(image: Any, image_format: ImageFormat, held: Contents, path: Path, max_pages: int) -> int:
    """How many are to be decoded. Raises ImageError where some would be lost, or are too many."""
    pages = int(image.get("n-pages")) if "n-pages" in image.get_fields() else 1
    if held.parts.frames > 1:
        raise ImageError(
            f"{path}: an animated PNG of {held.parts.frames} frames, of which only the first is read",
            fix="convert it to animated WebP",
        )
    if held.is_sequence:
        raise ImageError(
            f"{path}: a film in {image_format.value}, of which only the first frame is read",
            fix="convert it to animated WebP, or to a video",
        )
    if pages > 1 and image_format is ImageFormat.TIFF and held.pages_are_copies:
        return 1
    if pages > 1 and image_format in _IN_HEIF:
        raise ImageError(f"{path}: holds {pages} pictures", fix="split it into one file each")
    if pages > max_pages:
        allowed = "one is expected" if max_pages == 1 else f"at most {max_pages:,} are read"
        raise ImageError(f"{path}: has {pages:,} pages, {allowed}", fix="split it into one file a page")
    if pages > 1 and not held.pages_are_alike:
        raise ImageError(
            f"{path}: {counted(pages, 'page')} of different sizes or kinds",
            fix="split it into one file a page",
        )
    return pages


def _too_large(image: Any, pages: int, path: Path, max_pixels: int) -> str:
    size = f"{image.width} x {image.height}" + (f" x {counted(pages, 'page')}" if pages > 1 else "")
    pixels = pages * image.width * image.height
    return f"{path}: {size} is {pixels:,} pixels, the limit is {max_pixels:,}"


def _check_pixels(image: Any, path: Path) -> None:
    if image.format not in ("uchar", "ushort"):
        raise ImageError(f"{path}: samples are {image.format}, not 8 or 16 bits", fix="convert to 16 bits")
    colours = {"b-w": 1, "grey16": 1, "srgb": 3, "rgb16": 3, "cmyk": 4}.get(image.interpretation)
    if colours is None or image.bands not in (colours, colours + 1):
        raise ImageError(
            f"{path}: {image.bands} channels of colour space {image.interpretation}",
            fix="convert to RGB or grey, with one alpha channel at most",
        )


def _kept_metadata(image: Any) -> Metadata:
    return {name: image.get(name) for name in image.get_fields() if name.startswith(_KEPT_FIELDS)}


def _check_size_beside_pixels(
    path: Path, metadata: Metadata, exif: bytes | None, chunks: Sequence[Chunk]
) -> None:
    size = sum(len(value) for value in metadata.values() if isinstance(value, (bytes, str)))
    size += len(exif or b"") + sum(len(content) for _, content in chunks)
    if size > MAX_METADATA_BYTES:
        raise ImageError(
            f"{path}: {size / 2**20:,.0f} MiB of metadata, the limit is {MAX_METADATA_BYTES / 2**20:,.0f}",
            fix="save it without: exiftool -all= FILE",
        )


def _as_rgb(image: Any) -> Any:
    """Three channels, and a fourth where there is alpha; still lazy."""
    if image.interpretation == "cmyk":
        depth = 16 if image.format == "ushort" else 8
        # input_profile serves files that bring no profile of their own: libvips' generic CMYK.
        return image.icc_transform("srgb", embedded=True, input_profile="cmyk", depth=depth)
    if image.interpretation in ("b-w", "grey16"):
        grey = image[0]
        return grey.bandjoin([grey, grey, *(image[band] for band in range(1, image.bands))])
    return image


def _decode(image: Any, pages: int) -> Pixels:
    """[H, W, bands], with a dimension more in front where there are several pages."""
    dtype = np.uint16 if image.format == "ushort" else np.uint8
    flat: Pixels = np.frombuffer(image.write_to_memory(), dtype=np.dtype(dtype))
    page = (image.height // pages, image.width, image.bands)
    return flat.reshape(page if pages == 1 else (pages, *page))
