"""`cmudrn infer` from file to file: what a photograph brought along, it has afterwards, by other readers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import pyvips
from outputs import shown
from PIL import Image
from rich_pictures import (
    HEIGHT,
    ORIENTATION,
    WIDTH,
    XMP,
    exif_block,
    exif_fields,
    exif_in,
    noise,
    profile,
    save_rich,
    small_jpeg,
)

from cmudrn.cli.app import main

TAKEN_NS = 1_709_210_096_000_000_000  # 29 February 2024
SUFFIXES = [".jpg", ".png", ".tif", ".webp", ".avif"]
OPTIONS = ["--loops", "1", "--backend", "onnx", "--threads", "1"]


def infer(*arguments: object) -> int:
    return main(["infer", *map(str, arguments), *OPTIONS])


@pytest.fixture(scope="module")
def restored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rich photograph of every format, and what becomes of each; a JPEG in every other format besides."""
    folder = tmp_path_factory.mktemp("fidelity")
    (folder / "in").mkdir()
    for suffix in SUFFIXES:
        save_rich(folder / "in" / f"{suffix[1:]}{suffix}", noise(HEIGHT, WIDTH, 3))
        os.utime(folder / "in" / f"{suffix[1:]}{suffix}", ns=(TAKEN_NS, TAKEN_NS))
    assert infer(folder / "in", "-o", folder / "out") == 0
    for suffix in SUFFIXES:
        assert infer(folder / "in" / "jpg.jpg", "-o", folder / f"from-jpg{suffix}") == 0
        assert infer(folder / "in" / "tif.tif", "-o", folder / f"from-tif{suffix}") == 0
        assert infer(folder / "in" / "jpg.jpg", "-o", folder / f"stripped{suffix}", "--strip") == 0
    return folder


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_exif_is_kept_byte_for_byte(restored: Path, suffix: str) -> None:
    assert exif_in(restored / "out" / f"{suffix[1:]}{suffix}") == exif_block()
    assert exif_in(restored / f"from-jpg{suffix}") == exif_block()


def test_an_avif_keeps_exif_byte_for_byte_but_for_the_turn(restored: Path) -> None:
    # libheif has turned the pixels. Pillow leaves the tag out of the blocks it writes, and puts it in again.
    kept = exif_in(restored / "out" / "avif.avif")
    assert kept is not None
    assert len(kept) > 300
    assert kept in (restored / "in" / "avif.avif").read_bytes()
    assert exif_in(restored / "from-jpg.avif") == exif_block(orientation=1)


@pytest.mark.parametrize("origin", ["jpg", "tif"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_exif_says_the_same_field_by_field_in_every_format(restored: Path, suffix: str, origin: str) -> None:
    source = exif_fields(restored / "in" / f"{origin}.{origin}")
    assert len(source) == 7  # make, title, note, time taken, the unknown, two of GPS
    assert exif_fields(restored / f"from-{origin}{suffix}") == source
    assert exif_fields(restored / "out" / f"{origin}.{origin}") == source


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_rest_is_kept(restored: Path, suffix: str) -> None:
    for path in (restored / "out" / f"{suffix[1:]}{suffix}", restored / f"from-jpg{suffix}"):
        with Image.open(path) as opened:
            assert opened.info["icc_profile"] == profile()
            assert opened.info["xmp"] == XMP
            turned = opened.getexif().get(ORIENTATION, 1)
            if suffix == ".avif":
                assert turned == 1
                assert opened.size == (HEIGHT, WIDTH)
            else:
                assert turned == 6
                # Pillow turns TIFFs as it opens them.
                assert opened.size == ((HEIGHT, WIDTH) if suffix == ".tif" else (WIDTH, HEIGHT))
            if suffix in (".jpg", ".png", ".tif"):
                assert [round(float(value)) for value in opened.info["dpi"]] == [300, 300]
        assert path.stat().st_mtime_ns == TAKEN_NS


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_strip_leaves_profile_and_orientation_alone(restored: Path, suffix: str) -> None:
    path = restored / f"stripped{suffix}"
    with Image.open(path) as opened:
        exif = opened.getexif()
        assert opened.info["icc_profile"] == profile()
        assert "xmp" not in opened.info
        assert not exif.get_ifd(0x8769)
        assert not exif.get_ifd(0x8825)
        assert 0x010F not in exif
        assert exif.get(ORIENTATION, 1) == (1 if suffix == ".avif" else 6)
        assert opened.info.get("jfif_unit", 0) == 0  # a ratio alone
        assert "dpi" not in opened.info or suffix == ".jpg"  # Pillow's own, where there is EXIF
    assert path.stat().st_mtime_ns > TAKEN_NS
    assert b"Kamer" not in path.read_bytes()


def test_what_says_no_resolution_gets_none(tmp_path: Path) -> None:
    Image.fromarray(noise(8, 8, 3)).save(tmp_path / "a.png")
    for suffix in (".png", ".jpg", ".tif"):
        assert infer(tmp_path / "a.png", "-o", tmp_path / f"b{suffix}") == 0
        with Image.open(tmp_path / f"b{suffix}") as opened:
            assert "dpi" not in opened.info


def test_a_thumbnail_of_what_was_is_dropped(tmp_path: Path) -> None:
    block = exif_block(thumbnail=small_jpeg())
    save_rich(tmp_path / "a.jpg", noise(8, 8, 3), exif=block)
    assert infer(tmp_path / "a.jpg", "-o", tmp_path / "b.jpg") == 0
    kept = exif_in(tmp_path / "b.jpg")
    assert kept is not None
    assert small_jpeg() not in (tmp_path / "b.jpg").read_bytes()
    changed = [place for place in range(len(kept)) if kept[place] != block[place]]
    assert len(block) - len(kept) == len(small_jpeg())
    assert len(changed) <= 4  # the pointer to it
    assert exif_fields(tmp_path / "b.jpg") == exif_fields(tmp_path / "a.jpg")


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("bands", [3, 4])
def test_sixteen_bits_go_in_and_come_out(tmp_path: Path, bands: int, suffix: str) -> None:
    # A ramp of 16-bit steps: were it cut to 8 bits on its way, few values would be left.
    ramp = np.linspace(20_000, 24_000, 64 * 64).astype(np.uint16).reshape(64, 64)
    stored = np.dstack([ramp] * 3 + [noise(64, 64, dtype=np.uint16)] * (bands - 3))
    image = pyvips.Image.new_from_array(np.ascontiguousarray(stored))
    image.copy(interpretation="rgb16").write_to_file(str(tmp_path / f"a{suffix}"))
    assert infer(tmp_path / f"a{suffix}", "-o", tmp_path / f"b{suffix}") == 0
    restored = pyvips.Image.new_from_file(str(tmp_path / f"b{suffix}")).numpy()
    assert restored.dtype == np.uint16
    assert len(np.unique(restored[..., :3])) > 1_000  # of 8 bits: 17
    if bands == 4:
        assert np.array_equal(restored[..., 3], stored[..., 3])
    assert infer(tmp_path / f"a{suffix}", "-o", tmp_path / "b.webp") == 0
    assert pyvips.Image.new_from_file(str(tmp_path / "b.webp")).format == "uchar"


def pages(count: int, mode: str = "RGB") -> list[Image.Image]:
    rng = np.random.default_rng(3)
    return [
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).convert(mode) for _ in range(count)
    ]


def frames_of(path: Path, **options: Any) -> Any:
    """[P, H, W, bands], by libvips."""
    image = pyvips.Image.new_from_file(str(path), n=-1)
    return image.numpy().reshape(image.get("n-pages"), -1, image.width, image.bands)


def test_pages_of_a_tiff_are_restored_each_for_itself(tmp_path: Path) -> None:
    first, *others = pages(3)
    first.save(tmp_path / "a.tif", save_all=True, append_images=others, compression="tiff_deflate")
    assert infer(tmp_path / "a.tif", "-o", tmp_path / "b.tif") == 0
    together = frames_of(tmp_path / "b.tif")
    assert together.shape == (3, 20, 30, 3)
    for number, page in enumerate((first, *others)):
        page.save(tmp_path / f"{number}.tif")
        assert infer(tmp_path / f"{number}.tif", "-o", tmp_path / f"{number}-b.tif") == 0
        assert np.array_equal(
            together[number], pyvips.Image.new_from_file(str(tmp_path / f"{number}-b.tif")).numpy()
        )


@pytest.mark.parametrize("suffix", [".webp", ".gif"])
def test_a_film_keeps_its_frames_their_times_and_its_loops(tmp_path: Path, suffix: str) -> None:
    first, *others = pages(3)
    times = [40, 80, 120]
    path = tmp_path / f"a{suffix}"
    first.save(path, save_all=True, append_images=others, duration=times, loop=2, lossless=True)
    assert infer(path, "-o", tmp_path / f"b{suffix}") == 0
    before, after = (pyvips.Image.new_from_file(str(file), n=-1) for file in (path, tmp_path / f"b{suffix}"))
    assert after.get("delay") == before.get("delay") == times
    assert after.get("loop") == before.get("loop")
    assert frames_of(tmp_path / f"b{suffix}").shape[:3] == (3, 20, 30)


def test_provenance_says_what_restored_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cmudrn.checkpoint import read_checkpoint

    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1709210096")
    for suffix in SUFFIXES:
        save_rich(tmp_path / f"a{suffix}", noise(8, 8, 3))
        assert infer(tmp_path / f"a{suffix}", "-o", tmp_path / f"b{suffix}", "--provenance") == 0
        with Image.open(tmp_path / f"b{suffix}") as opened:
            packet = opened.info["xmp"]
        told = {
            node.tag.partition("}")[2]: node.text
            for node in ElementTree.fromstring(packet).iter()
            if node.tag.startswith("{urn:cmudrn:provenance/1.0/}")
        }
        assert told["WeightsSHA256"] == read_checkpoint("default").sha256
        assert told["Loops"] == "1"
        assert told["Date"] == "2024-02-29T12:34:56Z"
        assert "ONNX Runtime" in str(told["RestoredBy"])
        assert b"algorithmicallyEnhanced" in packet


def test_provenance_is_refused_where_nothing_holds_it(tmp_path: Path) -> None:
    Image.fromarray(noise(8, 8, 3)).save(tmp_path / "a.gif")
    assert infer(tmp_path / "a.gif", "-o", tmp_path / "b.gif", "--provenance") == 1
    assert infer(tmp_path / "a.gif", "--format", "gif", "--provenance") == 2
    assert infer(tmp_path / "a.gif", "-o", tmp_path / "b.webp", "--provenance") == 0


def test_a_heatmap_stands_beside_each_target_and_is_no_source(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(noise(HEIGHT, WIDTH, 3)).save(tmp_path / "in" / "a.png")
    Image.fromarray(noise(HEIGHT, WIDTH, 3)).save(
        tmp_path / "in" / "b-heatmap.png"
    )  # a photograph, by chance
    assert infer(tmp_path / "in", "-o", tmp_path / "out", "--heatmap") == 0
    names = ["a-heatmap.png", "a.png", "b-heatmap-heatmap.png", "b-heatmap.png"]
    assert shown(tmp_path / "out") == names
    before, after = (np.asarray(Image.open(tmp_path / side / "a.png"), int) for side in ("in", "out"))
    with Image.open(tmp_path / "out" / "a-heatmap.png") as opened:
        assert opened.mode == "P"
        assert np.array_equal(np.asarray(opened), np.abs(before - after).max(axis=2))
    assert infer(tmp_path / "out", "-o", tmp_path / "again") == 0
    assert shown(tmp_path / "again") == ["a.png", "b-heatmap.png"]


@pytest.mark.parametrize("other", ["a.webp", "a-heatmap.png"])
def test_heatmaps_that_would_take_anothers_place_are_refused(tmp_path: Path, other: str) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.png", other):
        Image.fromarray(noise(8, 8, 3)).save(tmp_path / "in" / name)
    assert infer(tmp_path / "in", "-o", tmp_path / "out", "--heatmap") == 2
    assert not (tmp_path / "out").exists()


def test_no_heatmap_stays_of_a_picture_that_was_not_written(tmp_path: Path) -> None:
    Image.fromarray(noise(8, 8, 4)).save(tmp_path / "a.png")
    assert infer(tmp_path / "a.png", "-o", tmp_path / "b.jpg", "--heatmap") == 1  # it has no alpha
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_heatmap_that_is_there_already_is_not_replaced(tmp_path: Path) -> None:
    Image.fromarray(noise(8, 8, 3)).save(tmp_path / "a.png")
    (tmp_path / "b-heatmap.png").write_bytes(b"mine")
    assert infer(tmp_path / "a.png", "-o", tmp_path / "b.png", "--heatmap") == 2
    assert infer(tmp_path / "a.png", "-o", tmp_path / "b.png", "--heatmap", "--overwrite") == 0
    assert (tmp_path / "b-heatmap.png").read_bytes() != b"mine"


def test_each_provenance_is_in_the_history_and_the_last_one_in_the_properties(tmp_path: Path) -> None:
    save_rich(tmp_path / "a.jpg", noise(8, 8, 3))
    assert infer(tmp_path / "a.jpg", "-o", tmp_path / "b.jpg", "--provenance") == 0
    assert infer(tmp_path / "b.jpg", "-o", tmp_path / "c.jpg", "--provenance", "--output", "rain") == 0
    with Image.open(tmp_path / "c.jpg") as opened:
        packet = opened.info["xmp"]
    assert packet.count(b"<cmudrn:Output") == 1
    assert packet.count(b"<stEvt:action") == 2
    assert b"Output fused" in packet
    assert b"Output rain" in packet
