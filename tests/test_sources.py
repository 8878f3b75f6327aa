"""What a job reads, where each result goes, and what is refused before anything is touched."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from cmudrn.deploy.job import BackendName, BackendOptions, Existing, InferJob
from cmudrn.deploy.sources import check_sources, find_items
from cmudrn.errors import UsageError
from cmudrn.formats import ImageFormat


def job(*sources: Path, **options: Any) -> InferJob:
    return InferJob(sources=sources, **options)


def touch(*paths: Path) -> None:
    """Empty files: nothing here looks inside."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def targets(of: InferJob) -> list[Path]:
    assert check_sources(of) == len(list(find_items(of)))
    return [item.target for item in find_items(of)]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    touch(folder / "b.jpg", folder / "a.PNG", folder / "trip" / "day 1" / "c.tiff", folder / "notes.txt")
    return folder


def test_a_folder_is_mirrored_and_other_files_are_passed_by(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert targets(job(photos, out=out)) == [
        out / "a.PNG",
        out / "b.jpg",
        out / "trip" / "day 1" / "c.tiff",
    ]
    assert not out.exists()


def test_without_an_out_results_stand_beside_the_sources(photos: Path, tmp_path: Path) -> None:
    restored = tmp_path / "photos-restored"
    assert targets(job(photos))[0] == restored / "a.PNG"
    assert targets(job(photos / "b.jpg")) == [photos / "b-restored.jpg"]


def test_one_image_goes_to_a_file_or_into_a_folder(photos: Path, tmp_path: Path) -> None:
    source = photos / "b.jpg"
    assert targets(job(source, out=tmp_path / "clear.png")) == [tmp_path / "clear.png"]
    assert targets(job(source, out=tmp_path / "out")) == [tmp_path / "out" / "b.jpg"]
    (tmp_path / "dotted.jpg").mkdir()
    assert targets(job(source, out=tmp_path / "dotted.jpg")) == [tmp_path / "dotted.jpg" / "b.jpg"]


def test_several_sources_keep_their_names_under_out(photos: Path, tmp_path: Path) -> None:
    touch(tmp_path / "more" / "d.webp", tmp_path / "e.jpg")
    out = tmp_path / "out"
    found = targets(job(photos / "trip", tmp_path / "more", tmp_path / "e.jpg", out=out))
    assert found == [out / "trip" / "day 1" / "c.tiff", out / "more" / "d.webp", out / "e.jpg"]


def test_a_format_changes_suffixes_and_only_where_it_must(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert targets(job(photos, out=out, format=ImageFormat.PNG)) == [
        out / "a.PNG",
        out / "b.png",
        out / "trip" / "day 1" / "c.png",
    ]


@pytest.mark.parametrize("name", ["снег.jpg", "雨 の日.PNG", "a [x=1].jpeg", "-dash.tif", "semi;colon.webp"])
def test_names_of_any_kind_are_kept(name: str, tmp_path: Path) -> None:
    touch(tmp_path / "in" / name)
    assert targets(job(tmp_path / "in", out=tmp_path / "out")) == [tmp_path / "out" / name]


def test_links_that_lead_back_are_not_followed_for_ever(photos: Path, tmp_path: Path) -> None:
    (photos / "trip" / "again").symlink_to(photos)
    (photos / "up").symlink_to(tmp_path)
    (photos / "self").symlink_to(photos / "self")
    assert len(targets(job(photos, out=tmp_path.parent / f"{tmp_path.name}-out"))) == 3


def test_links_to_files_and_folders_elsewhere_are_read(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere" / "x.jpg", tmp_path / "y.jpg")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "folder").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "z.jpg").symlink_to(tmp_path / "y.jpg")
    out = tmp_path / "out"
    assert targets(job(tmp_path / "in", out=out)) == [out / "z.jpg", out / "folder" / "x.jpg"]


def test_half_written_files_of_a_killed_run_are_not_sources(photos: Path, tmp_path: Path) -> None:
    touch(photos / ".b.jpg.123-0abc.part", photos / "._b.jpg")
    assert len(targets(job(photos, out=tmp_path / "out"))) == 3


def test_what_must_not_be_opened_is_an_item_with_its_problem(photos: Path, tmp_path: Path) -> None:
    os.mkfifo(photos / "pipe.jpg")
    (photos / "gone.jpg").symlink_to(tmp_path / "nowhere")
    problems = {item.source.name: item.problem for item in find_items(job(photos, out=tmp_path / "out"))}
    assert problems["pipe.jpg"] == "not a regular file"
    assert problems["gone.jpg"] == "No such file or directory"
    assert problems["b.jpg"] == ""


def snapshot(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def refused(of: InferJob, match: str, watched: Path) -> str:
    """Runs the check, which must refuse and touch nothing. Returns the way out."""
    before = snapshot(watched)
    with pytest.raises(UsageError, match=match) as caught:
        check_sources(of)
    assert snapshot(watched) == before
    assert caught.value.fix
    return caught.value.fix


def test_a_missing_source_is_refused(tmp_path: Path) -> None:
    refused(job(tmp_path / "none"), "none: No such file", tmp_path)


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    touch(tmp_path / "in" / "notes.txt")
    fix = refused(job(tmp_path / "in"), "in: no images in it", tmp_path)
    assert ".jpg" in fix


def test_a_source_as_its_own_target_is_refused(photos: Path) -> None:
    refused(job(photos, out=photos), "would be its own target|is a source", photos)
    refused(job(photos / "b.jpg", out=photos / "b.jpg"), "would be its own target", photos)
    refused(job(photos / "b.jpg", out=photos), "would be its own target", photos)


def test_a_source_under_another_name_is_refused_all_the_same(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(photos)
    refused(job(photos, out=tmp_path / "link", existing=Existing.OVERWRITE), "own target|is a source", photos)


def test_an_out_inside_a_source_is_refused(photos: Path) -> None:
    refused(job(photos, out=photos / "trip" / "out"), "is a source, or inside one", photos)


def test_an_out_that_holds_the_source_is_fine(photos: Path, tmp_path: Path) -> None:
    assert targets(job(photos / "b.jpg", out=tmp_path)) == [tmp_path / "b.jpg"]


def test_targets_that_are_there_are_refused_unless_the_user_chose(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    touch(out / "b.jpg")
    fix = refused(job(photos, out=out), r"b\.jpg is there already", tmp_path)
    assert "--overwrite" in fix
    assert "--skip-existing" in fix
    for chosen in (Existing.OVERWRITE, Existing.SKIP):
        assert check_sources(job(photos, out=out, existing=chosen)) == 3


def test_a_folder_in_the_place_of_a_file_is_refused(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "b.jpg").mkdir(parents=True)
    refused(
        job(photos, out=tmp_path / "out", existing=Existing.OVERWRITE), "a folder is in the way", tmp_path
    )


def test_a_file_in_the_place_of_a_folder_is_refused(photos: Path, tmp_path: Path) -> None:
    touch(tmp_path / "out")
    refused(job(photos, out=tmp_path / "out"), "a file is in the way", tmp_path)
    refused(job(photos, out=tmp_path / "out" / "deeper"), "a file is in the way", tmp_path)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_an_out_without_permission_is_refused(photos: Path, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    refused(job(photos, out=locked / "out"), "no permission to write", tmp_path)


def test_two_sources_for_one_target_are_refused(tmp_path: Path) -> None:
    touch(
        tmp_path / "x" / "a.jpg", tmp_path / "y" / "a.jpg", tmp_path / "z" / "a.jpg", tmp_path / "z" / "a.png"
    )
    out = tmp_path / "out"
    both = (tmp_path / "x" / "a.jpg", tmp_path / "y" / "a.jpg")
    refused(job(*both, out=out), "would both become", tmp_path)
    refused(job(tmp_path / "z", out=out, format=ImageFormat.WEBP), "would both become", tmp_path)


def test_a_source_as_the_target_of_another_is_refused(tmp_path: Path) -> None:
    touch(tmp_path / "x" / "a.jpg", tmp_path / "out" / "a.jpg")
    sources = (tmp_path / "x", tmp_path / "out" / "a.jpg")
    into_it = job(*sources, out=tmp_path, existing=Existing.OVERWRITE)
    refused(into_it, "own target|is a source", tmp_path)
    both = job(
        tmp_path / "x" / "a.jpg",
        tmp_path / "out" / "a.jpg",
        out=tmp_path / "out",
        existing=Existing.OVERWRITE,
    )
    refused(both, "would both become|own target|is a source", tmp_path)


def test_a_name_that_no_disk_takes_is_refused(photos: Path, tmp_path: Path) -> None:
    refused(job(photos / "b.jpg", out=tmp_path / ("x" * 300 + ".jpg")), "name too long", tmp_path)


def test_a_slip_of_the_hand_is_refused(photos: Path) -> None:
    with pytest.raises(UsageError, match="--threads 100000"):
        BackendOptions(threads=100_000)
    with pytest.raises(UsageError, match="--streams 100000"):
        BackendOptions(streams=100_000)
    with pytest.raises(UsageError, match="--batch 100000"):
        job(photos, batch=100_000)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"threads": 0}, "--threads 0"),
        ({"streams": 0}, "--streams 0"),
        ({"devices": ("cpu",), "name": BackendName.TENSORRT}, "engines run on a GPU"),
        ({"devices": ("cpu", "0")}, "--device cpu, and another"),
        ({"devices": ("1", "0", "1")}, "--device 1 --device 0 --device 1"),
        ({"devices": ("0",), "name": BackendName.OPENVINO}, "--backend openvino: it runs on the CPU"),
    ],
)
def test_devices_that_contradict_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        BackendOptions(**options)
    assert caught.value.fix


@pytest.mark.skipif(ImageFormat.HEIF.writable, reason="this libvips encodes HEIC")
def test_a_format_that_is_read_but_not_written_asks_for_another(tmp_path: Path) -> None:
    touch(tmp_path / "in" / "a.heic")
    fix = refused(job(tmp_path / "in"), r"\.heic is read but not written", tmp_path)
    assert "--format png" in fix


def test_an_out_that_contradicts_the_format_is_refused(photos: Path, tmp_path: Path) -> None:
    wrong = job(photos / "b.jpg", out=tmp_path / "c.png", format=ImageFormat.TIFF)
    refused(wrong, "contradicts --format tiff", tmp_path)
    refused(job(photos / "b.jpg", out=tmp_path / "c.bmp"), r"\.bmp is not written", tmp_path)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"loops": 0}, "--loops 0"),
        ({"loops": 8}, "--loops 8"),
        ({"tile_px": 0}, "--tile 0"),
        ({"overlap_px": -1}, "--overlap -1"),
        ({"tile_px": 64, "overlap_px": 32}, "--tile 64 leaves nothing"),
        ({"batch": 0}, "--batch 0"),
        ({"max_pixels": 0}, "--max-pixels 0"),
    ],
)
def test_a_job_refuses_what_makes_no_sense(options: dict[str, int], said: str, photos: Path) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        job(photos, **options)
    assert caught.value.fix
