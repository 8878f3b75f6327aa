"""Every kind of file that people have is handled as they would expect, or refused with the way out."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pyvips
from PIL import Image, ImageCms
from rich_pictures import insert_chunk, noise, profile

from cmudrn.errors import ImageError, ImageTooLarge
from cmudrn.images import MOST_PAGES, read_header, read_picture, write_picture

HEIGHT, WIDTH = 20, 32


def photo(seed: int = 0) -> Any:
    """Smooth, so that lossy formats change little."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    channels = [120 + 60 * np.sin(rows / 5 + seed), 100 + 3 * columns, 90 + 50 * np.cos(columns / 7)]
    return np.dstack(channels).astype(np.uint8)


def vips_of(pixels: Any, interpretation: str) -> Any:
    return pyvips.Image.new_from_array(np.ascontiguousarray(pixels)).copy(interpretation=interpretation)


def read(path: Path) -> Any:
    return read_picture(path, max_pages=MOST_PAGES)


def refused(path: Path) -> ImageError:
    """The same by the header alone, in one line, with a way out."""
    with pytest.raises(ImageError) as caught:
        read(path)
    with pytest.raises(ImageError):
        read_header(path, max_pages=MOST_PAGES)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.fix
    return caught.value


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "jpeg", "Q": 100},
        {"compression": "lzw", "tile": True, "tile_width": 16, "tile_height": 16},
        {"compression": "deflate", "bigtiff": True},
        {"compression": "packbits"},
    ],
    ids=str,
)
def test_tiffs_are_read_however_their_pixels_lie(tmp_path: Path, options: dict[str, Any]) -> None:
    vips_of(photo(), "srgb").tiffsave(str(tmp_path / "a.tif"), **options)
    difference = np.abs(read(tmp_path / "a.tif").pixels.astype(int) - photo())
    assert difference.max() <= (8 if "Q" in options else 0)


def test_a_planar_tiff_is_read(tmp_path: Path) -> None:
    planes = [plane.tobytes() for plane in photo().transpose(2, 0, 1)]
    size = len(planes[0])
    tags = [(256, 4, 1, WIDTH), (257, 4, 1, HEIGHT), (258, 3, 3, 8), (259, 3, 1, 1), (262, 3, 1, 2)]
    count = len(tags) + 5
    after = 8 + 2 + 12 * count + 4
    tags[2] = (258, 3, 3, after)
    tags += [
        (273, 4, 3, after + 6),
        (277, 3, 1, 3),
        (278, 4, 1, HEIGHT),
        (279, 4, 3, after + 18),
        (284, 3, 1, 2),
    ]
    rows = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    first = after + 30
    values = struct.pack("<3H", 8, 8, 8) + struct.pack(
        "<6I", *(first + size * i for i in range(3)), *[size] * 3
    )
    (tmp_path / "a.tif").write_bytes(
        b"II*\0" + struct.pack("<IH", 8, count) + rows + bytes(4) + values + b"".join(planes)
    )
    assert np.array_equal(read(tmp_path / "a.tif").pixels, photo())


def test_a_progressive_jpeg_and_an_interlaced_png_are_read_as_the_plain_ones(tmp_path: Path) -> None:
    for suffix, option in ((".jpg", "progressive"), (".png", "interlace")):
        for value in (False, True):
            save = {".jpg": "jpegsave", ".png": "pngsave"}[suffix]
            name = "interlace"
            pyvips.Operation.call(
                save, vips_of(photo(), "srgb"), str(tmp_path / f"{value}{suffix}"), **{name: value}
            )
        plain, other = (read(tmp_path / f"{value}{suffix}").pixels for value in (False, True))
        assert np.array_equal(plain, other), option


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK"])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_every_mode_of_pillow_comes_back_as_a_person_would_expect(
    tmp_path: Path, mode: str, suffix: str
) -> None:
    if (mode, suffix) == ("CMYK", ".png"):
        pytest.skip("PNG has no CMYK")
    image = Image.fromarray(photo())
    image = Image.fromarray(noise(HEIGHT, WIDTH, dtype=np.uint16)) if mode == "I;16" else image.convert(mode)
    image.save(tmp_path / f"a{suffix}")
    picture = read(tmp_path / f"a{suffix}")
    write_picture(picture, tmp_path / f"b{suffix}")
    with Image.open(tmp_path / f"b{suffix}") as opened:
        # One bit becomes eight, for what is restored is grey; a palette becomes the colours in it.
        assert opened.mode == {"1": "L", "P": "RGB", "CMYK": "RGB"}.get(mode, mode)
        if mode != "CMYK":
            assert np.array_equal(np.asarray(opened), np.asarray(image.convert(opened.mode)))


def test_inverted_ink_is_told_from_plain_ink(tmp_path: Path) -> None:
    # Adobe's CMYK JPEGs hold 255 for no ink, as Pillow writes them: white must not become black.
    Image.new("CMYK", (16, 16), (0, 0, 0, 0)).save(tmp_path / "a.jpg")
    assert read(tmp_path / "a.jpg").pixels.min() > 250


def test_a_wide_gamut_stays_in_its_own_numbers_under_its_own_profile(tmp_path: Path) -> None:
    wide = (
        bytes(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())[:-1] + b"\x01"
    )  # any other
    Image.fromarray(photo()).save(tmp_path / "a.png", icc_profile=wide)
    picture = read(tmp_path / "a.png")
    assert np.array_equal(picture.pixels, photo())
    write_picture(picture, tmp_path / "b.png")
    with Image.open(tmp_path / "b.png") as opened:
        assert opened.info["icc_profile"] == wide
    Image.fromarray(photo()).save(tmp_path / "srgb.png", icc_profile=profile())
    write_picture(read(tmp_path / "srgb.png"), tmp_path / "c.gif")  # which has no profile: as sRGB
    with Image.open(tmp_path / "c.gif") as opened:
        assert np.abs(np.asarray(opened.convert("RGB")).astype(int) - photo()).mean() < 12


def test_a_pngs_own_chunks_are_kept_and_its_gamma_goes_nowhere_else(tmp_path: Path) -> None:
    Image.fromarray(photo()).save(tmp_path / "a.png")
    told = {
        b"gAMA": (100_000).to_bytes(4, "big"),
        b"cHRM": bytes(range(32)),
        b"tIME": struct.pack(">H5B", 2024, 2, 29, 12, 34, 56),
    }
    for name, content in told.items():
        insert_chunk(tmp_path / "a.png", name, content)
    write_picture(read(tmp_path / "a.png"), tmp_path / "b.png")
    content = (tmp_path / "b.png").read_bytes()
    for name, value in told.items():
        assert content.count(name) == 1
        assert name + value in content
    with Image.open(tmp_path / "b.png") as opened:
        opened.load()
    with pytest.raises(ImageError, match="gamma of this picture, 1"):
        write_picture(read(tmp_path / "a.png"), tmp_path / "b.jpg")


@pytest.mark.parametrize(
    ("interpretation", "dtype", "what"),
    [("scrgb", np.float32, "float"), ("srgb", np.int16, "short"), ("srgb", np.uint32, "uint")],
)
def test_samples_of_other_kinds_are_refused(
    tmp_path: Path, interpretation: str, dtype: Any, what: str
) -> None:
    vips_of(photo().astype(dtype), interpretation).tiffsave(str(tmp_path / "a.tif"))
    assert f"samples are {what}" in refused(tmp_path / "a.tif").what


def test_a_pyramid_is_its_largest_level(tmp_path: Path) -> None:
    tiles = {"tile": True, "tile_width": 16, "tile_height": 16, "pyramid": True}
    for options in (tiles, {**tiles, "subifd": True}):
        vips_of(photo(), "srgb").tiffsave(str(tmp_path / "a.tif"), **options)
        assert np.array_equal(read_picture(tmp_path / "a.tif").pixels, photo())
        assert read_header(tmp_path / "a.tif").pages == 1


def test_pages_that_differ_are_refused(tmp_path: Path) -> None:
    page = Image.fromarray(photo())
    page.save(tmp_path / "sizes.tif", save_all=True, append_images=[page.resize((8, 8))])
    page.save(tmp_path / "kinds.tif", save_all=True, append_images=[page.convert("L")])
    for name in ("sizes.tif", "kinds.tif"):
        assert "2 pages of different sizes or kinds" in refused(tmp_path / name).what


def test_films_of_which_only_a_frame_would_be_read_are_refused(tmp_path: Path) -> None:
    frames = [Image.fromarray(photo(seed)) for seed in range(3)]
    for name in ("a.png", "a.avif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], duration=50)
        refused(tmp_path / name)
    assert "3 frames" in refused(tmp_path / "a.png").what


def test_the_limit_is_of_all_pages_together(tmp_path: Path) -> None:
    frames = [Image.fromarray(photo(seed)) for seed in range(3)]
    for suffix in (".tif", ".webp", ".gif"):
        frames[0].save(tmp_path / f"a{suffix}", save_all=True, append_images=frames[1:])
        header = read_header(tmp_path / f"a{suffix}", max_pixels=3 * HEIGHT * WIDTH, max_pages=3)
        assert (header.pages, header.height, header.width, header.pixels) == (
            3,
            HEIGHT,
            WIDTH,
            3 * HEIGHT * WIDTH,
        )
        with pytest.raises(ImageTooLarge, match="3 pages"):
            read_header(tmp_path / f"a{suffix}", max_pixels=3 * HEIGHT * WIDTH - 1, max_pages=3)
        with pytest.raises(ImageError, match="has 3 pages, at most 2"):
            read_header(tmp_path / f"a{suffix}", max_pages=2)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pages_are_upright_each(tmp_path: Path, orientation: int) -> None:
    stored = np.concatenate([photo(seed) for seed in range(3)])
    image = vips_of(stored, "srgb").copy()
    image.set_type(pyvips.GValue.gint_type, "page-height", HEIGHT)
    image.set_type(pyvips.GValue.gint_type, "orientation", orientation)
    image.tiffsave(str(tmp_path / "a.tif"))
    picture = read(tmp_path / "a.tif")
    single = vips_of(photo(1), "srgb")
    single.set_type(pyvips.GValue.gint_type, "orientation", orientation)
    single.tiffsave(str(tmp_path / "one.tif"))
    assert np.array_equal(picture.pixels[1], read(tmp_path / "one.tif").pixels)
    write_picture(picture, tmp_path / "b.tif")
    again = pyvips.Image.new_from_file(str(tmp_path / "b.tif"), n=-1)
    assert np.array_equal(again.numpy(), stored)
    assert again.get("page-height") == HEIGHT


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_pages_are_not_dropped_for_a_format_of_one(tmp_path: Path, suffix: str) -> None:
    frames = [Image.fromarray(photo(seed)) for seed in range(2)]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    with pytest.raises(ImageError, match="holds one page, the picture has 2"):
        write_picture(read(tmp_path / "a.tif"), tmp_path / f"b{suffix}")


def test_half_transparent_pixels_are_not_dropped_for_gif(tmp_path: Path) -> None:
    for alpha in (128, 255):
        Image.fromarray(np.dstack([photo(), np.full((HEIGHT, WIDTH), alpha, np.uint8)])).save(
            tmp_path / "a.png"
        )
        if alpha == 255:
            write_picture(read(tmp_path / "a.png"), tmp_path / "b.gif")
            continue
        with pytest.raises(ImageError, match="half transparent"):
            write_picture(read(tmp_path / "a.png"), tmp_path / "b.gif")


def test_exif_too_long_for_a_jpeg_is_said(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010F] = "x" * 70_000
    Image.fromarray(photo()).save(tmp_path / "a.png", exif=exif)
    write_picture(read(tmp_path / "a.png"), tmp_path / "b.png")
    with pytest.raises(ImageError, match=r"its EXIF has 70,.* a JPEG holds 65,527"):
        write_picture(read(tmp_path / "a.png"), tmp_path / "b.jpg")
