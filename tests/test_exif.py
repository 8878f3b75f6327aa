"""EXIF is changed in the one place that must change, and what is broken does no harm."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import pyvips
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich_pictures import (
    EXIF_IFD,
    GPS_IFD,
    MAKE,
    MAKER_NOTE,
    ORIENTATION,
    exif_block,
    exif_fields,
    noise,
    small_jpeg,
)

from cmudrn.images import read_picture, write_picture
from cmudrn.images.chunks import jpeg_parts, png_parts
from cmudrn.images.exif import (
    add_to_tiff,
    exif_of_tiff,
    orientation_in,
    with_orientation,
    without_thumbnail,
)
from cmudrn.images.photoshop import iptc_in, resources_in


def fields(block: bytes) -> dict[int, object]:
    exif = Image.Exif()
    exif.load(b"Exif\0\0" + block)
    values = {**exif, **exif.get_ifd(EXIF_IFD), **exif.get_ifd(GPS_IFD)}
    return {tag: value for tag, value in values.items() if tag not in (EXIF_IFD, GPS_IFD)}  # these are places


@pytest.mark.parametrize("order", ["<", ">"])
def test_the_orientation_is_changed_in_its_place(order: str) -> None:
    block = exif_block(order=order, orientation=6)
    changed = with_orientation(block, 3)
    assert changed is not None
    assert [old for old, new in zip(block, changed, strict=True) if old != new] == [6]
    assert orientation_in(changed) == 3
    assert fields(changed)[ORIENTATION] == 3


@pytest.mark.parametrize("order", ["<", ">"])
def test_an_orientation_that_was_not_told_moves_nothing_else(order: str) -> None:
    block = exif_block(order=order, orientation=None)
    assert with_orientation(block, 1) == block
    changed = with_orientation(block, 8)
    assert changed is not None
    assert changed[8 : len(block)] == block[8:]
    assert {**fields(block), ORIENTATION: 8} == fields(changed)


def test_a_turned_picture_without_exif_gets_a_block() -> None:
    assert with_orientation(None, 1) is None
    block = with_orientation(None, 5)
    assert block is not None
    assert fields(block) == {ORIENTATION: 5}


@pytest.mark.parametrize("order", ["<", ">"])
def test_only_the_thumbnail_goes(order: str) -> None:
    block = exif_block(order=order, thumbnail=small_jpeg())
    without = without_thumbnail(block)
    assert small_jpeg() not in without
    assert fields(without) == fields(block)
    padded = without_thumbnail(block + b"what a maker keeps behind it")
    assert padded.endswith(b"what a maker keeps behind it")
    assert len(padded) == len(block) + 28
    assert small_jpeg() not in padded
    assert without_thumbnail(exif_block()) == exif_block()


def test_a_thumbnail_that_lies_over_other_values_takes_none_of_them_along() -> None:
    block = exif_block(order="<", thumbnail=small_jpeg())
    note = block.index(b"MakerNote")
    place = block.index(struct.pack("<HHI", 0x0201, 4, 1)) + 8
    crossed = block[:place] + struct.pack("<I", note) + block[place + 4 :]
    assert fields(without_thumbnail(crossed))[MAKER_NOTE] == fields(block)[MAKER_NOTE]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("big", [False, True])
def test_a_tiff_takes_the_tags_of_a_block_in_its_own_order(tmp_path: Path, big: bool, order: str) -> None:
    path = tmp_path / "a.tif"
    pyvips.Image.new_from_array(noise(8, 8, 3)).tiffsave(str(path), bigtiff=big)
    before = pyvips.Image.new_from_file(str(path)).numpy()
    with path.open("r+b", buffering=0) as file:
        add_to_tiff(file, exif_block(order=order), {})
        again = exif_of_tiff(file)
    assert again is not None
    wanted = fields(exif_block(order=order))
    assert {tag: fields(again)[tag] for tag in wanted if tag != ORIENTATION} == {
        tag: value for tag, value in wanted.items() if tag != ORIENTATION
    }
    assert np.array_equal(pyvips.Image.new_from_file(str(path)).numpy(), before)
    if not big:  # which Pillow does not open
        assert exif_fields(path)["make"] == wanted[MAKE]


@settings(max_examples=600, deadline=None)
@given(st.data())
def test_broken_blocks_and_files_do_no_harm(data: st.DataObject) -> None:
    block = bytearray(exif_block(order=data.draw(st.sampled_from("<>")), thumbnail=small_jpeg()))
    for _ in range(data.draw(st.integers(1, 6))):
        block[data.draw(st.integers(0, min(len(block), 400) - 1))] = data.draw(st.integers(0, 255))
    broken = bytes(block[: data.draw(st.integers(0, len(block)))])
    orientation_in(broken)
    changed = with_orientation(broken, 3)
    assert changed is not None
    assert len(changed) < len(broken) + 100_000
    assert len(without_thumbnail(broken)) <= len(broken)
    exif_of_tiff(io.BytesIO(broken))
    for read in (png_parts, jpeg_parts):
        read(io.BytesIO(broken))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_anything_may_stand_where_resources_should(content: bytes) -> None:
    for value in (content, b"Photoshop 3.0\0" + content, b"8BIM" + content):
        for field in ("iptc-data", "photoshop-data"):
            assert len(iptc_in(resources_in({field: value}))) <= len(value)


def block_of(number: int, content: bytes) -> bytes:
    return b"8BIM" + struct.pack(">HHI", number, 0, len(content)) + content + bytes(len(content) % 2)


def test_iptc_goes_between_jpeg_and_tiff_and_the_small_picture_does_not(tmp_path: Path) -> None:
    iptc = b"\x1c\x02\x78\x00\x06Regen!"  # 2:120, the caption
    resources = block_of(1028, iptc) + block_of(1036, small_jpeg()) + block_of(1005, bytes(16))
    Image.fromarray(noise(8, 8, 3)).save(tmp_path / "a.jpg")
    content = (tmp_path / "a.jpg").read_bytes()
    segment = b"Photoshop 3.0\0" + resources
    head = b"\xff\xed" + (len(segment) + 2).to_bytes(2, "big") + segment
    (tmp_path / "a.jpg").write_bytes(content[:2] + head + content[2:])
    for source, target in (("a.jpg", "b.jpg"), ("a.jpg", "b.tif"), ("b.tif", "c.jpg")):
        write_picture(read_picture(tmp_path / source), tmp_path / target)
        assert small_jpeg() not in (tmp_path / target).read_bytes()
    for name in ("b.jpg", "c.jpg"):
        with Image.open(tmp_path / name) as opened:
            assert opened.info["photoshop"][1028] == iptc
    with Image.open(tmp_path / "b.tif") as opened:
        tags = opened.tag_v2
        assert bytes(tags[34377]) == block_of(1028, iptc) + block_of(1005, bytes(16))
        assert bytes(tags[33723]) == iptc


def test_a_jpeg_keeps_the_segments_of_its_camera(tmp_path: Path) -> None:
    Image.fromarray(noise(8, 8, 3)).save(tmp_path / "a.jpg", comment=b"a comment")
    content = (tmp_path / "a.jpg").read_bytes()
    kept = [
        (0xE1, b"FLIR\0temperatures"),
        (0xE6, b"GoPro\0motion"),
        (0xE8, b"isotherms"),
        (0xE0, b"II..HEAPJPGM"),
    ]
    dropped = [
        (0xE2, b"MPF\0other pictures"),
        (0xEB, b"JP\0\0signature"),
        (0xE8, b"SPIFF\0"),
        (0xE0, b"JFXX\0small"),
    ]
    heads = [
        b"\xff" + bytes([marker]) + (len(value) + 2).to_bytes(2, "big") + value
        for marker, value in kept + dropped
    ]
    (tmp_path / "a.jpg").write_bytes(content[:2] + b"".join(heads) + content[2:])
    write_picture(read_picture(tmp_path / "a.jpg"), tmp_path / "b.jpg")
    written = (tmp_path / "b.jpg").read_bytes()
    for head, (_, value) in zip(heads, kept + dropped, strict=True):
        assert (head in written) is ((_, value) in kept)
    assert b"a comment" in written


def test_what_stands_behind_the_pixels_of_a_png_is_kept(tmp_path: Path) -> None:
    def chunk(name: bytes, value: bytes) -> bytes:
        return struct.pack(">I", len(value)) + name + value + struct.pack(">I", zlib.crc32(name + value))

    stored = noise(6, 10, 3)
    Image.fromarray(stored).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    late = chunk(b"eXIf", exif_block(orientation=6)), chunk(b"tEXt", b"Comment\0late")
    (tmp_path / "a.png").write_bytes(content[:-12] + b"".join(late) + content[-12:])
    picture = read_picture(tmp_path / "a.png")
    assert picture.pixels.shape == (10, 6, 3)  # upright
    write_picture(picture, tmp_path / "b.png")
    assert all(one in (tmp_path / "b.png").read_bytes() for one in late)
    with Image.open(tmp_path / "b.png") as opened:
        assert np.array_equal(np.asarray(opened), stored)
        assert opened.getexif()[ORIENTATION] == 6
