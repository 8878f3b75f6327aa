"""docs/fidelity.md says of each format what is found in a file of it: its table is measured here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pyvips
from PIL import Image
from rich_pictures import ORIENTATION, XMP, exif_block, exif_fields, exif_in, noise, profile

from cmudrn.errors import ImageError
from cmudrn.formats import ImageFormat
from cmudrn.images import Picture, write_picture

DOCS = Path(__file__).parent.parent / "docs" / "fidelity.md"
FORMATS = [ImageFormat(name) for name in ("jpeg", "png", "tiff", "webp", "avif", "gif")]
TIME_NS = 1_709_210_096_000_000_000
IPTC = b"\x1c\x02\x78\x00\x05Regen"
RESOURCES = b"8BIM\x04\x04\0\0" + len(IPTC).to_bytes(4, "big") + IPTC

PLAIN = Picture(noise(24, 40, 3), None, ImageFormat.TIFF, False, 1, None, {}, modified_ns=TIME_NS)
RICH = replace(
    PLAIN,
    orientation=6,
    resolution=(12.0, 12.0),
    metadata={"xmp-data": XMP, "icc-profile-data": profile(), "photoshop-data": RESOURCES},
    exif=exif_block(),
)


def exif(path: Path, form: ImageFormat) -> str:
    kept = exif_in(path)
    if kept is not None:
        same = exif_block(orientation=1 if form is ImageFormat.AVIF else 6)
        return "byte for byte" if kept == same else "changed"
    fields = exif_fields(path)
    assert fields["make"] is None or len([value for value in fields.values() if value is not None]) == 7
    return "no" if fields["make"] is None else "each tag"


def xmp(path: Path, form: ImageFormat) -> str:
    with Image.open(path) as opened:
        return "yes" if opened.info.get("xmp") == XMP else "no"


def resources(path: Path, form: ImageFormat) -> str:
    return "yes" if IPTC in path.read_bytes() else "no"


def icc(path: Path, form: ImageFormat) -> str:
    with Image.open(path) as opened:
        return "yes" if opened.info.get("icc_profile") == profile() else "pixels become sRGB"


def resolution(path: Path, form: ImageFormat) -> str:
    if form in (ImageFormat.WEBP, ImageFormat.AVIF):  # which have no other place
        return "in EXIF"
    with Image.open(path) as opened:
        dpi = opened.info.get("dpi", (0, 0))
    return "yes" if [round(float(value)) for value in dpi] == [305, 305] else "no"


def orientation(path: Path, form: ImageFormat) -> str:
    image = pyvips.Image.new_from_file(str(path))
    lies = (image.height, image.width) == (40, 24)
    with Image.open(path) as opened:
        tag = opened.getexif().get(ORIENTATION, 1)
    return {(True, 6): "tag", (False, 1): "upright"}.get((lies, tag), f"{lies} {tag}")


def time(path: Path, form: ImageFormat) -> str:
    return "yes" if path.stat().st_mtime_ns == TIME_NS else "no"


def written(picture: Picture, folder: Path, form: ImageFormat) -> Any:
    """The pixels as they lie in the file, or None where that is refused."""
    path = folder / f"other{form.suffix}"
    try:
        write_picture(picture, path)
    except ImageError:
        return None
    return pyvips.Image.new_from_file(str(path), **({"n": -1} if picture.pages > 1 else {}))


def alpha(folder: Path, form: ImageFormat) -> str:
    steps = np.linspace(0, 255, 24 * 40).astype(np.uint8).reshape(24, 40)
    image = written(replace(PLAIN, alpha=steps), folder, form)
    if image is not None:
        assert np.abs(image.numpy()[..., 3].astype(int) - steps).max() <= (
            2 if form is ImageFormat.AVIF else 0
        )
        return "yes"
    image = written(replace(PLAIN, alpha=np.where(steps > 99, 255, 0).astype(np.uint8)), folder, form)
    return "refused" if image is None else "on or off"


def depth(folder: Path, form: ImageFormat) -> str:
    image = written(replace(PLAIN, pixels=noise(24, 40, 3, dtype=np.uint16)), folder, form)
    bits = image.get("bits-per-sample") if "bits-per-sample" in image.get_fields() else 8
    bits = 8 if form is ImageFormat.GIF else bits
    return "yes" if bits == 16 else f"as {bits}"


def grey(folder: Path, form: ImageFormat) -> str:
    flat = np.repeat(noise(24, 40, 1), 3, axis=2)
    image = written(replace(PLAIN, pixels=flat, is_grey=True), folder, form)
    return "yes" if image.bands == 1 else "as RGB"


def pages(folder: Path, form: ImageFormat) -> str:
    image = written(replace(PLAIN, pixels=noise(3, 24, 40, 3)), folder, form)
    if image is None:
        return "refused"
    assert image.get("n-pages") == 3
    return "frames" if "delay" in image.get_fields() else "pages"


OF_RICH: dict[str, Callable[[Path, ImageFormat], str]] = {
    "EXIF": exif,
    "XMP": xmp,
    "IPTC, Photoshop's resources": resources,
    "ICC profile": icc,
    "resolution": resolution,
    "orientation": orientation,
    "the file's time": time,
}
OF_KINDS = {"alpha": alpha, "16 bits": depth, "grey": grey, "several pages": pages}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    folder = tmp_path_factory.mktemp("table")
    rows: dict[str, list[str]] = {name: [] for name in (*OF_RICH, *OF_KINDS)}
    for form in FORMATS:
        path = folder / f"rich{form.suffix}"
        write_picture(RICH, path)
        for name, of_rich in OF_RICH.items():
            rows[name].append(of_rich(path, form))
        for name, of_kind in OF_KINDS.items():
            rows[name].append(of_kind(folder, form))
        path.unlink()
    return rows


@pytest.mark.parametrize("name", [*OF_RICH, *OF_KINDS])
def test_the_table_says_what_is_found(measured: dict[str, list[str]], name: str) -> None:
    row = f"| {name} | {' | '.join(measured[name])} |"
    assert row in DOCS.read_text(encoding="utf-8").splitlines()


def test_the_table_has_no_row_that_is_not_measured() -> None:
    lines = DOCS.read_text(encoding="utf-8").splitlines()
    start = lines.index(f"| | {' | '.join(form.value for form in FORMATS)} |")
    rows = lines[start + 2 : lines.index("", start)]
    assert [row.split("|")[1].strip() for row in rows] == [*OF_RICH, *OF_KINDS]
