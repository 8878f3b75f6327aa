"""Read and write photographs without losing what is not pixels.

A picture stands upright while it is with us: rain falls down, and the network is not rotation-invariant.
It goes back into the file as it lay there, under the same orientation tag. ICC profile (byte for byte),
EXIF, XMP, IPTC and resolution are kept as far as the output format can hold them; TIFF holds no EXIF here,
for libvips does not write it. libvips decodes and encodes; the format of an input is told by its first bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import pyvips
from numpy.typing import NDArray

from cmudrn.errors import ImageError, ImageTooLarge
from cmudrn.files import replacing
from cmudrn.formats import CODECS, Codec, ImageFormat, sniff

__all__ = [
    "DEFAULT_MAX_PIXELS",
    "Header",
    "Picture",
    "Pixels",
    "read_header",
    "read_picture",
    "write_picture",
]

# Every picture is used once: libvips' cache of operations would only hold memory through a long job.
pyvips.cache_set_max(0)
# One libvips thread a picture: the pipeline runs several pictures side by side, beside the inference.
if hasattr(pyvips, "concurrency_set"):  # pyvips 3.2; before it, the environment's VIPS_CONCURRENCY says
    pyvips.concurrency_set(1)

# 400 million pixels are 1.2 GB at 8 bits: above any camera, below what a small file may claim to unpack to.
DEFAULT_MAX_PIXELS = 400_000_000
# A CMYK profile has 3 MB, an editor's history in XMP a few. It lies in memory beside the pixels, uncounted.
MAX_METADATA_BYTES = 32 * 2**20
REASON_LETTERS = 240  # of what libvips says; it may repeat itself for as long as a file is broken

Pixels: TypeAlias = "NDArray[np.uint8 | np.uint16]"  # [H, W, 3]
Metadata: TypeAlias = "Mapping[str, bytes | str | int]"  # libvips' field names

_KEPT_FIELDS = (  # and all that begin so
    *("icc-profile-data", "exif-", "xmp-data", "iptc-data", "orientation", "resolution-unit"),
    *("png-comment-", "photoshop-data", "image-description"),
)


@dataclass(frozen=True)
class Header:
    """What the start of a file tells: its size, in pixels, upright."""

    path: Path
    height: int
    width: int


@dataclass(frozen=True, eq=False)
class Picture:
    """One decoded picture, upright, with all that is needed to write it back."""

    pixels: Pixels  # [H, W, 3] RGB, C-contiguous, uint8 or uint16, the full range of the type
    alpha: Pixels | None  # [H, W], same dtype; never changed
    format: ImageFormat  # of the file it came from
    is_grey: bool  # three equal channels, to be written as one
    orientation: int  # EXIF, 1 to 8: how the file holds it
    resolution: tuple[float, float]  # pixels a millimetre, as libvips counts: across, down
    metadata: Metadata

    def with_pixels(self, restored: NDArray[Any]) -> Picture:
        """The same picture with other pixels.

        restored: shape and dtype of `pixels`, else ImageError.
        """
        if restored.shape != self.pixels.shape or restored.dtype != self.pixels.dtype:
            raise ImageError(
                f"restored pixels are {restored.shape} {restored.dtype}, "
                f"the picture is {self.pixels.shape} {self.pixels.dtype}",
                fix="restore at the same size and bit depth",
            )
        return replace(self, pixels=np.ascontiguousarray(restored))


def read_header(path: str | os.PathLike[str], *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Header:
    """Read the size of an image and decode nothing.

    Raises ImageError for a file that read_picture would refuse by its header, ImageTooLarge by its size.
    """
    path = Path(path)
    with _failing_as_image_error(path, "read"), path.open("rb", buffering=0) as file:
        image_format, image = _open(file, path, max_pixels)
        swapped = _orientation(image, image_format) >= 5
    height, width = (image.width, image.height) if swapped else (image.height, image.width)
    return Header(path, height, width)


def read_picture(path: str | os.PathLike[str], *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Picture:
    """Decode an image of 8 or 16 bits: RGB, grey, palette or CMYK (as sRGB), with alpha or without.

    One decoded copy stays in memory; alpha or a turn takes a second one for a moment.
    Raises ImageError for a file that is missing, damaged, of several pages or of another kind of pixel,
    ImageTooLarge for one of more than max_pixels, before it is decoded.
    """
    path = Path(path)
    with _failing_as_image_error(path, "read"), path.open("rb", buffering=0) as file:
        image_format, image = _open(file, path, max_pixels)
        orientation = _orientation(image, image_format)
        metadata = _kept_metadata(image, path)
        if image_format in (ImageFormat.AVIF, ImageFormat.HEIF):
            metadata = _with_upright_tag(metadata)
        if image.interpretation == "cmyk":
            metadata = _without(metadata, "icc-profile-data")  # it describes ink, the pixels are sRGB now
        stored = _decode(_as_rgb(image))
    alpha = stored[..., 3] if stored.shape[2] == 4 else None
    return Picture(
        pixels=np.ascontiguousarray(_turn(stored[..., :3], orientation)),
        alpha=None if alpha is None else np.ascontiguousarray(_turn(alpha, orientation)),
        format=image_format,
        is_grey=image.interpretation in ("b-w", "grey16"),
        orientation=orientation,
        resolution=(image.xres, image.yres),
        metadata=metadata,
    )


def write_picture(picture: Picture, path: str | os.PathLike[str]) -> None:
    """Write a file whole or not at all; the suffix chooses the format.

    16 bits become 8 in JPEG and WebP, as round(value / 257), and 12 in AVIF and HEIF.
    Raises ImageError for a suffix that cannot be written, alpha into JPEG, a full disk and the like.
    """
    path = Path(path)
    image_format = ImageFormat.of(path.suffix)
    if image_format is None or not image_format.writable:
        raise ImageError(
            f"{path}: cannot write {path.suffix or 'a name without suffix'}", fix=_other_format()
        )
    codec = CODECS[image_format]
    if picture.alpha is not None and not codec.has_alpha:
        raise ImageError(f"{path}: {image_format.value} has no transparency", fix="use --format png")
    options = dict(codec.save_options)
    if picture.pixels.dtype == np.uint16 and codec.load == "heif":
        options["bitdepth"] = 12
    if codec.load == "tiff":
        options["bigtiff"] = picture.pixels.nbytes > 2**31  # classic TIFF ends at 4 GB, metadata included
    with _failing_as_image_error(path, "write"), replacing(path, durable=False) as file:
        # A descriptor, never a name: libvips takes `[...]` in a name for options.
        target = pyvips.Target.new_to_descriptor(file.fileno())
        pyvips.Operation.call(f"{codec.load}save_target", _as_stored(picture, codec), target, **options)


def _open(file: BinaryIO, path: Path, max_pixels: int) -> tuple[ImageFormat, Any]:
    """A lazy pyvips image as stored, checked as far as its header goes."""
    start = file.read(16)
    file.seek(0)
    image_format = sniff(start)
    if image_format is None:
        what = "an image of a known format" if start else "an image: the file is empty"
        raise ImageError(f"{path}: not {what}", fix="give JPEG, PNG, TIFF, WebP, AVIF or HEIF files")
    source = pyvips.Source.new_from_descriptor(file.fileno())
    # fail_on error includes truncated, and checks PNG's checksums; "warning" refuses sound files.
    options: dict[str, object] = {"access": "sequential", "fail_on": "error"}
    if image_format is ImageFormat.TIFF and pyvips.at_least_libvips(8, 17):
        # libtiff's own bound, 50 MB, refuses sound files: one compressed strip of 24 megapixels.
        options["unlimited"] = True
    image = pyvips.Operation.call(f"{CODECS[image_format].load}load_source", source, **options)
    _check(image, path, max_pixels)
    return image_format, image


def _check(image: Any, path: Path, max_pixels: int) -> None:
    fields = image.get_fields()
    pages = image.get("n-pages") if "n-pages" in fields else 1
    if pages > 1:
        raise ImageError(f"{path}: has {pages} pages, one is expected", fix="split it into one file a page")
    if image.width * image.height > max_pixels:
        raise ImageTooLarge(
            f"{path}: {image.width} x {image.height} is {image.width * image.height:,} pixels, "
            f"the limit is {max_pixels:,}",
            fix="raise --max-pixels if you trust the file",
        )
    if image.format not in ("uchar", "ushort"):
        raise ImageError(f"{path}: samples are {image.format}, not 8 or 16 bits", fix="convert to 16 bits")
    colours = {"b-w": 1, "grey16": 1, "srgb": 3, "rgb16": 3, "cmyk": 4}.get(image.interpretation)
    if colours is None or image.bands not in (colours, colours + 1):
        raise ImageError(
            f"{path}: {image.bands} channels of colour space {image.interpretation}",
            fix="convert to RGB or grey, with one alpha channel at most",
        )


def _orientation(image: Any, image_format: ImageFormat) -> int:
    """EXIF orientation of the pixels as decoded: 1 after libheif, which has turned them already."""
    if not CODECS[image_format].has_orientation or "orientation" not in image.get_fields():
        return 1
    value = int(image.get("orientation"))
    return value if 1 <= value <= 8 else 1


def _kept_metadata(image: Any, path: Path) -> Metadata:
    kept = {name: image.get(name) for name in image.get_fields() if name.startswith(_KEPT_FIELDS)}
    size = sum(len(value) for value in kept.values() if isinstance(value, (bytes, str)))
    if size > MAX_METADATA_BYTES:
        raise ImageError(
            f"{path}: {size / 2**20:,.0f} MiB of metadata, the limit is {MAX_METADATA_BYTES / 2**20:,.0f}",
            fix="save it without: exiftool -all= FILE",
        )
    return kept


def _without(metadata: Metadata, *names: str) -> Metadata:
    return {name: value for name, value in metadata.items() if name not in names}


def _with_upright_tag(metadata: Metadata) -> Metadata:
    # Said, not left out: libvips would take the turn from the EXIF block itself.
    return {**_without(metadata, "exif-ifd0-Orientation"), "orientation": 1}


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


def _decode(image: Any) -> Pixels:
    dtype = np.uint16 if image.format == "ushort" else np.uint8
    flat: Pixels = np.frombuffer(image.write_to_memory(), dtype=np.dtype(dtype))
    return flat.reshape(image.height, image.width, image.bands)


def _turn(pixels: Pixels, orientation: int) -> Pixels:
    """A view of stored [H, W, ...] pixels set upright, by EXIF's orientation."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    down = -1 if orientation in (3, 4, 7, 8) else 1
    across = -1 if orientation in (2, 3, 6, 7) else 1
    return pixels[::down, ::across]


def _as_stored(picture: Picture, codec: Codec) -> Any:
    """A lazy pyvips image as it shall lie in the file; copies the pixels only to turn them."""
    # Turned by 90 degrees and its inverse are each other's: 6 and 8. All others undo themselves.
    undo = {6: 8, 8: 6}.get(picture.orientation, picture.orientation) if codec.has_orientation else 1
    image = _vips(_turn(picture.pixels, undo))
    if picture.is_grey:
        image = image.bandmean()  # integer, rounded
    if picture.alpha is not None:
        image = image.bandjoin(_vips(_turn(picture.alpha, undo)))
    if image.format == "ushort" and not codec.has_16_bits:
        image = (image / 257).rint().cast("uchar")
    spaces = ("srgb", "b-w") if image.format == "uchar" else ("rgb16", "grey16")
    xres, yres = picture.resolution
    image = image.copy(interpretation=spaces[picture.is_grey], xres=xres, yres=yres)
    metadata = picture.metadata
    if not codec.has_orientation:
        metadata = _with_upright_tag(metadata)
    for name, value in metadata.items():
        image.set_type(_gtype(value), name, value)
    return image


def _vips(pixels: Pixels) -> Any:
    pixels = np.ascontiguousarray(pixels)
    bands = 1 if pixels.ndim == 2 else pixels.shape[2]
    band_format = "ushort" if pixels.dtype == np.uint16 else "uchar"
    return pyvips.Image.new_from_memory(pixels, pixels.shape[1], pixels.shape[0], bands, band_format)


def _gtype(value: bytes | str | int) -> Any:
    if isinstance(value, bytes):
        return pyvips.GValue.blob_type
    return pyvips.GValue.refstr_type if isinstance(value, str) else pyvips.GValue.gint_type


def _other_format() -> str:
    return "use --format " + ", ".join(form.value for form in ImageFormat if form.writable)


@contextmanager
def _failing_as_image_error(path: Path, verb: str) -> Iterator[None]:
    """Turn what the system or libvips says, often in several lines, into one line with a way out."""
    try:
        yield
    except OSError as exc:
        fix = "check the name and its permissions"
        raise ImageError(f"{path}: cannot {verb}: {exc.strerror or exc}", fix=fix) from exc
    except pyvips.Error as exc:
        if verb == "write":
            fix = "check the disk's space, or " + _other_format()
        elif path.suffix.lower() in CODECS[ImageFormat.HEIF].suffixes:
            fix = "convert it to JPEG or PNG, or use a libvips with an HEVC decoder"
        else:
            fix = "the file may be damaged: fetch it again, or open and save it in an editor"
        raise ImageError(f"{path}: cannot {verb}: {_shortened(str(exc))}", fix=fix) from exc
    except UnicodeError as exc:
        said = _taken_message() or "it holds text that is no UTF-8"
        raise ImageError(
            f"{path}: cannot {verb}: {_shortened(said)}", fix="save it anew in an editor"
        ) from exc


def _taken_message() -> str:
    """What libvips wants to say, for pyvips cannot read it where a file's own bytes are in it.

    It must be taken: pyvips leaves it there, and every later picture of this process would fail by it.
    """
    said: bytes = pyvips.ffi.string(pyvips.vips_lib.vips_error_buffer())
    pyvips.vips_lib.vips_error_clear()
    return said.decode(errors="backslashreplace")


def _shortened(said: str) -> str:
    """In one line and not too long; what libvips says more than once, once."""
    lines = dict.fromkeys(" ".join(line.split()) for line in said.splitlines())
    reason = "; ".join(line for line in lines if line and not line.startswith("source: bad seek"))
    return reason if len(reason) <= REASON_LETTERS else f"{reason[:REASON_LETTERS]}..."
