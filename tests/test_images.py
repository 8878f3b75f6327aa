"""Pictures come back as they lay in the file, and what cannot be read says why."""

from __future__ import annotations

import io
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pyvips
from PIL import Image, ImageCms

import cmudrn.images as images
from cmudrn.errors import ImageError, ImageTooLarge
from cmudrn.formats import CODECS, READABLE_SUFFIXES, ImageFormat, writable
from cmudrn.images import Picture, read_header, read_picture, write_picture, writing

HEIGHT, WIDTH = 6, 10
ORIENTATION = 0x0112
LOSSLESS_SUFFIXES = [".png", ".tif"]

# EXIF 2.3, tag 0x0112: what a viewer does to the stored pixels, by Pillow's names.
UPRIGHT_BY = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,  # Pillow counts anticlockwise
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def noise(*shape: int, dtype: Any = np.uint8) -> Any:
    return np.random.default_rng(7).integers(0, np.iinfo(dtype).max + 1, shape, dtype=dtype)


def stored_pixels(path: Path) -> Any:
    """What lies in the file, no orientation applied; [H, W] or [H, W, bands]."""
    return pyvips.Image.new_from_file(str(path)).numpy()


def save_vips(pixels: Any, path: Path, interpretation: str) -> Path:
    height, width, bands = pixels.shape
    band_format = {"uint8": "uchar", "uint16": "ushort", "float32": "float"}[str(pixels.dtype)]
    image = pyvips.Image.new_from_memory(np.ascontiguousarray(pixels), width, height, bands, band_format)
    image.copy(interpretation=interpretation).write_to_file(str(path))
    return path


def save_oriented(pixels: Any, path: Path, orientation: int) -> Path:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    exif[0x010F] = "A camera maker"
    Image.fromarray(pixels).save(path, exif=exif, dpi=(300, 300))
    return path


def copied(source: Path, target: Path) -> Path:
    write_picture(read_picture(source), target)
    return target


@pytest.mark.parametrize("suffix", LOSSLESS_SUFFIXES)
@pytest.mark.parametrize("bands", [3, 4])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pixels_are_upright_and_go_back_as_they_lay(
    tmp_path: Path, orientation: int, bands: int, suffix: str
) -> None:
    stored = noise(HEIGHT, WIDTH, bands)
    source = save_oriented(stored, tmp_path / f"in{suffix}", orientation)
    turn = UPRIGHT_BY[orientation]
    upright = np.asarray(Image.fromarray(stored) if turn is None else Image.fromarray(stored).transpose(turn))

    picture = read_picture(source)
    header = read_header(source)
    assert np.array_equal(picture.pixels, upright[..., :3])
    assert picture.pixels.flags.c_contiguous
    assert (header.height, header.width) == picture.pixels.shape[:2]
    if bands == 4:
        assert picture.alpha is not None
        assert np.array_equal(picture.alpha, upright[..., 3])

    target = copied(source, tmp_path / f"out{suffix}")
    assert np.array_equal(stored_pixels(target), stored)
    with Image.open(target) as opened:
        assert opened.getexif()[ORIENTATION] == orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tiff", ".webp", ".avif"])
def test_every_format_shows_the_same_upright_picture(tmp_path: Path, orientation: int, suffix: str) -> None:
    smooth = np.zeros((48, 80, 3), np.uint8)
    smooth[:16, :24] = (250, 120, 20)  # one corner: every turn and flip moves it elsewhere
    picture = read_picture(save_oriented(smooth, tmp_path / "in.png", orientation))
    again = read_picture(copied(tmp_path / "in.png", tmp_path / f"out{suffix}"))
    assert again.pixels.shape == picture.pixels.shape
    difference = np.abs(again.pixels.astype(int) - picture.pixels.astype(int))
    assert difference.mean() < 3  # lossy formats blur the corner's edge; a wrong turn gives over 10


def test_avif_is_written_upright_without_a_stale_tag(tmp_path: Path) -> None:
    source = save_oriented(noise(HEIGHT, WIDTH, 3), tmp_path / "in.png", 6)
    target = copied(source, tmp_path / "out.avif")
    image = pyvips.Image.heifload(str(target), autorotate=False)
    assert (image.height, image.width) == (WIDTH, HEIGHT)
    assert "orientation" not in image.get_fields() or image.get("orientation") == 1
    back = copied(target, tmp_path / "back.jpg")
    with Image.open(back) as opened:
        assert opened.size == (HEIGHT, WIDTH)
        assert opened.getexif().get(ORIENTATION, 1) == 1
        assert opened.getexif()[0x010F] == "A camera maker"


@pytest.mark.parametrize("suffix", LOSSLESS_SUFFIXES)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("bands", [1, 2, 3, 4])
def test_every_kind_of_pixel_survives_unchanged(tmp_path: Path, bands: int, dtype: Any, suffix: str) -> None:
    stored = noise(HEIGHT, WIDTH, bands, dtype=dtype)
    is_grey = bands < 3
    space = ("grey16" if is_grey else "rgb16") if dtype is np.uint16 else ("b-w" if is_grey else "srgb")
    source = save_vips(stored, tmp_path / f"in{suffix}", space)
    picture = read_picture(source)
    assert picture.pixels.shape == (HEIGHT, WIDTH, 3)
    assert picture.pixels.dtype == dtype
    assert picture.is_grey == is_grey
    if is_grey:
        assert np.array_equal(picture.pixels, np.repeat(stored[..., :1], 3, axis=2))
    target = stored_pixels(copied(source, tmp_path / f"out{suffix}"))
    assert target.dtype == dtype
    assert np.array_equal(target.reshape(stored.shape), stored)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_grey_picture_is_written_as_the_rounded_mean_of_its_channels(tmp_path: Path, dtype: Any) -> None:
    space = "grey16" if dtype is np.uint16 else "b-w"
    source = save_vips(noise(HEIGHT, WIDTH, 1, dtype=dtype), tmp_path / "in.png", space)
    restored = noise(HEIGHT, WIDTH, 3, dtype=dtype)
    write_picture(read_picture(source).with_pixels(restored), tmp_path / "out.png")
    mean = np.rint(restored.astype(np.float64).mean(axis=2))
    assert np.array_equal(stored_pixels(tmp_path / "out.png").reshape(HEIGHT, WIDTH), mean)


def test_sixteen_bits_are_rounded_to_eight_where_the_format_has_no_more(tmp_path: Path) -> None:
    every_value = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    picture = read_picture(save_vips(np.dstack([every_value] * 3), tmp_path / "in.png", "rgb16"))
    codec = CODECS[ImageFormat.WEBP]
    pixels = writing._as_stored(picture, codec).numpy()
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels[..., 1], np.rint(every_value / 257))
    for suffix in (".webp", ".jpg"):
        assert read_picture(copied(tmp_path / "in.png", tmp_path / f"out{suffix}")).pixels.dtype == np.uint8


def test_a_palette_becomes_rgb(tmp_path: Path) -> None:
    flat = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    flat[:, 4:] = (200, 30, 60)
    Image.fromarray(flat).convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "in.png")
    assert np.array_equal(read_picture(tmp_path / "in.png").pixels, flat)
    assert np.array_equal(stored_pixels(copied(tmp_path / "in.png", tmp_path / "out.png")), flat)


@pytest.mark.parametrize("embeds_profile", [True, False])
def test_cmyk_becomes_srgb_and_leaves_its_profile_behind(tmp_path: Path, embeds_profile: bool) -> None:
    red = pyvips.Image.black(16, 16).linear(1, [220, 40, 30])
    ink = red.cast("uchar").copy(interpretation="srgb").icc_transform("cmyk", input_profile="srgb")
    ink.jpegsave(str(tmp_path / "in.jpg"), Q=100, keep="all" if embeds_profile else "none")
    picture = read_picture(tmp_path / "in.jpg")
    # Out of the gamut of ink by a little, hence the wide margin; inverted ink would be cyan.
    assert np.allclose(picture.pixels.mean(axis=(0, 1)), [220, 40, 30], atol=25)
    assert "icc-profile-data" not in picture.metadata
    with Image.open(copied(tmp_path / "in.jpg", tmp_path / "out.jpg")) as opened:
        assert opened.mode == "RGB"
        assert "icc_profile" not in opened.info


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp", ".avif"])
def test_the_icc_profile_is_kept_byte_for_byte(tmp_path: Path, suffix: str) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(noise(HEIGHT, WIDTH, 3)).save(tmp_path / "in.png", icc_profile=profile)
    target = copied(tmp_path / "in.png", tmp_path / f"out{suffix}")
    with Image.open(target) as opened:
        assert opened.info["icc_profile"] == profile
    assert read_picture(target).metadata["icc-profile-data"] == profile


def test_a_jpeg_keeps_exif_xmp_and_resolution(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 8
    exif[0x010F] = "A camera maker"
    xmp = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'><rdf:RDF/></x:xmpmeta>"
    image = Image.fromarray(noise(HEIGHT, WIDTH, 3))
    image.save(tmp_path / "in.jpg", exif=exif, xmp=xmp, dpi=(300, 240))
    with Image.open(copied(tmp_path / "in.jpg", tmp_path / "out.jpg")) as opened:
        assert opened.size == (WIDTH, HEIGHT)
        assert opened.getexif()[ORIENTATION] == 8
        assert opened.getexif()[0x010F] == "A camera maker"
        assert opened.info["xmp"] == xmp
        assert opened.info["dpi"] == (300, 240)


def test_a_jpeg_is_written_at_full_chroma_resolution(tmp_path: Path) -> None:
    Image.fromarray(noise(16, 16, 3)).save(tmp_path / "in.png")
    copied(tmp_path / "in.png", tmp_path / "out.jpg")
    assert pyvips.Image.new_from_file(str(tmp_path / "out.jpg")).get("jpeg-chroma-subsample") == "4:4:4"


@pytest.mark.parametrize("name", ["a[page=1] ü.jpg", "b [Q=1].PNG", "雪%d 'x'.TIFF", "x" * 250 + ".png"])
def test_any_file_name_can_be_read_and_written(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "in [n=-1]"
    folder.mkdir()
    buffer = io.BytesIO()
    form = {".jpg": "JPEG", ".png": "PNG", ".tiff": "TIFF"}[Path(name).suffix.lower()]
    Image.fromarray(noise(HEIGHT, WIDTH, 3)).save(buffer, form)
    (folder / name).write_bytes(buffer.getvalue())
    picture = read_picture(folder / name)
    (folder / name).unlink()
    write_picture(picture, folder / name)
    assert [file.name for file in folder.iterdir()] == [name]
    assert read_picture(folder / name).pixels.shape == (HEIGHT, WIDTH, 3)


def test_the_bytes_tell_the_format_not_the_suffix(tmp_path: Path) -> None:
    Image.fromarray(noise(HEIGHT, WIDTH, 3)).save(tmp_path / "in.png")
    (tmp_path / "in.png").rename(tmp_path / "in.jpg")
    assert read_picture(tmp_path / "in.jpg").format is ImageFormat.PNG


def refusal(path: Path) -> ImageError:
    """The error of read_picture, after a look at its form."""
    with pytest.raises(ImageError) as caught:
        read_picture(path)
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    assert caught.value.fix
    return caught.value


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp", ".avif"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_truncated_file_is_an_error(tmp_path: Path, suffix: str, share: float) -> None:
    Image.fromarray(noise(200, 200, 3)).save(tmp_path / f"whole{suffix}")
    whole = (tmp_path / f"whole{suffix}").read_bytes()
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(whole[: int(len(whole) * share)])
    refusal(path)


def test_a_png_with_a_wrong_checksum_is_an_error(tmp_path: Path) -> None:
    Image.fromarray(noise(64, 64, 3)).save(tmp_path / "in.png")
    content = bytearray((tmp_path / "in.png").read_bytes())
    place = content.index(b"IDAT") + 4 + 2000
    content[place] ^= 0x55
    (tmp_path / "in.png").write_bytes(content)
    refusal(tmp_path / "in.png")


@pytest.mark.parametrize("content", [b"", b"only text, no photograph", b"<svg width='9' height='9'/>"])
def test_what_is_no_image_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "text.jpg").write_bytes(content)
    assert "not an image" in refusal(tmp_path / "text.jpg").what


def test_a_missing_file_and_a_folder_are_errors(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "missing.png").what
    assert "directory" in refusal(tmp_path).what


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_forbidden_file_is_an_error(tmp_path: Path) -> None:
    Image.fromarray(noise(4, 4, 3)).save(tmp_path / "in.png")
    (tmp_path / "in.png").chmod(0)
    assert "ermission" in refusal(tmp_path / "in.png").what


def test_a_denied_open_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", deny)
    assert "Permission denied" in refusal(tmp_path / "in.png").what


def test_float_samples_are_an_error(tmp_path: Path) -> None:
    pixels = noise(4, 4, 3).astype(np.float32)
    assert "float" in refusal(save_vips(pixels, tmp_path / "in.tif", "scrgb")).what


def test_lab_pixels_are_an_error(tmp_path: Path) -> None:
    Image.new("LAB", (4, 4)).save(tmp_path / "in.tif")
    refusal(tmp_path / "in.tif")


@pytest.mark.parametrize("suffix", [".tif", ".webp"])
def test_several_pages_are_an_error_that_counts_them(tmp_path: Path, suffix: str) -> None:
    pages = [Image.new("RGB", (8, 8), (60 * page, 0, 0)) for page in range(3)]
    path = tmp_path / f"in{suffix}"
    pages[0].save(path, save_all=True, append_images=pages[1:])
    assert "3 pages" in refusal(path).what
    with pytest.raises(ImageError, match="3 pages"):
        read_header(path)


def test_the_header_alone_refuses_too_many_pixels(tmp_path: Path) -> None:
    # 50,000 x 50,000 promised by 57 bytes and no pixel data: only the header can have been read.
    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    size = (50_000).to_bytes(4, "big") * 2
    header = chunk(b"IHDR", size + bytes([8, 2, 0, 0, 0])) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header)
    for read in (read_header, read_picture):
        with pytest.raises(ImageTooLarge, match=r"50000 x 50000 .*2,500,000,000.*400,000,000.*--max-pixels"):
            read(tmp_path / "bomb.png")


def test_max_pixels_itself_is_allowed(tmp_path: Path) -> None:
    Image.fromarray(noise(HEIGHT, WIDTH, 3)).save(tmp_path / "in.png")
    assert read_header(tmp_path / "in.png", max_pixels=HEIGHT * WIDTH).width == WIDTH
    with pytest.raises(ImageTooLarge):
        read_picture(tmp_path / "in.png", max_pixels=HEIGHT * WIDTH - 1)


def simple_picture(tmp_path: Path, bands: int = 3) -> Picture:
    Image.fromarray(noise(HEIGHT, WIDTH, bands)).save(tmp_path / "in.png")
    return read_picture(tmp_path / "in.png")


def test_alpha_is_never_dropped_for_jpeg(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="--format png"):
        write_picture(simple_picture(tmp_path, 4), tmp_path / "out.jpg")
    assert not (tmp_path / "out.jpg").exists()


def test_other_pixels_must_match_in_shape_and_dtype(tmp_path: Path) -> None:
    picture = simple_picture(tmp_path)
    restored = 255 - picture.pixels
    assert np.array_equal(picture.with_pixels(restored).pixels, restored)
    for wrong in (restored[1:], restored.astype(np.uint16), restored[..., 0]):
        with pytest.raises(ImageError, match="restored pixels"):
            picture.with_pixels(wrong)


@pytest.mark.parametrize("name", ["out.bmp", "out"])
def test_an_unknown_suffix_is_refused_with_the_known_ones(tmp_path: Path, name: str) -> None:
    with pytest.raises(ImageError, match="--format jpeg, png"):
        write_picture(simple_picture(tmp_path), tmp_path / name)


def test_a_failed_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = simple_picture(tmp_path)
    target = tmp_path / "out.png"
    target.write_bytes(b"old")
    assert writable(".png")  # asked once, before libvips fails

    def fail(*_: object, **__: object) -> None:
        raise pyvips.Error("disk full\n", "second line")

    monkeypatch.setattr(pyvips.Operation, "call", fail)
    with pytest.raises(ImageError) as caught:
        write_picture(picture, target)
    assert "disk full" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert target.read_bytes() == b"old"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["in.png", "out.png"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux's always full device")
def test_a_full_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = simple_picture(tmp_path)
    with Path("/dev/full").open("wb", buffering=0) as full:
        monkeypatch.setattr(pyvips.Target, "new_to_descriptor", _to(full.fileno()))
        for suffix in (".png", ".jpg", ".tif", ".webp"):
            with pytest.raises(ImageError, match="disk"):
                write_picture(picture, tmp_path / f"out{suffix}")
    assert [file.name for file in tmp_path.iterdir()] == ["in.png"]


def _to(descriptor: int) -> Any:
    original = pyvips.Target.new_to_descriptor
    return staticmethod(lambda _: original(descriptor))


def test_a_side_beyond_the_format_is_an_error(tmp_path: Path) -> None:
    Image.new("RGB", (16_384, 1)).save(tmp_path / "in.png")  # WebP ends at 16,383
    with pytest.raises(ImageError):
        copied(tmp_path / "in.png", tmp_path / "out.webp")
    assert not (tmp_path / "out.webp").exists()


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="No such file"):
        write_picture(simple_picture(tmp_path), tmp_path / "nowhere" / "out.png")


def test_formats_know_their_suffixes() -> None:
    assert ImageFormat("jpeg").suffix == ".jpg"
    assert ImageFormat.of(".TIFF") is ImageFormat.TIFF
    assert ImageFormat.of(".bmp") is None
    assert all(writable(suffix) for suffix in (".jpg", ".JPEG", ".png", ".tif", ".tiff", ".webp", ".gif"))
    assert not writable(".bmp")
    assert {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp"} <= READABLE_SUFFIXES


def test_reading_holds_one_copy_of_the_pixels(tmp_path: Path) -> None:
    Image.fromarray(noise(HEIGHT, WIDTH, 4)).save(tmp_path / "rgba.png")
    picture = read_picture(tmp_path / "rgba.png")
    assert picture.pixels.base is None  # its own memory, not a view that keeps four channels alive
    assert picture.alpha is not None
    assert picture.alpha.base is None


def test_public_names_exist() -> None:
    assert all(hasattr(images, name) for name in images.__all__)
