"""Datasets of the field are told by their folders, and every image is paired with its own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import pyvips

from cmudrn.errors import CmudrnError, TrainingError, UsageError
from cmudrn.train.layouts import LAYOUTS, Pair, PairedSet, Split, Weather, check_sizes, find_pairs


def lay(root: Path, *names: str) -> Path:
    """Empty files below root: only check_sizes and sha256 look inside."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def draw(path: Path, height: int = 8, width: int = 8, *, bands: int = 3, bits: int = 8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((height, width, bands), 7, np.uint8 if bits == 8 else np.uint16)
    kind = {1: "b-w" if bits == 8 else "grey16"}.get(bands, "srgb" if bits == 8 else "rgb16")
    pyvips.Image.new_from_array(pixels, interpretation=kind).write_to_file(str(path))
    return path


def names(found: PairedSet) -> list[tuple[str, str]]:
    return [
        (pair.degraded.relative_to(found.root).as_posix(), pair.clean.relative_to(found.root).as_posix())
        for pair in found.pairs
    ]


def refused(kind: type[CmudrnError], folder: Path, match: str, **options: Split | Weather) -> str:
    """The way out of what must be refused."""
    with pytest.raises(kind, match=match) as caught:
        find_pairs(folder, **options)  # type: ignore[arg-type]
    assert caught.value.fix
    return caught.value.fix


# ---- Each layout


@pytest.mark.parametrize(
    ("layout", "weather", "files", "pairs"),
    [
        (
            "cmudrn",
            Weather.RAIN,
            ["rainy/a.png", "rainy/b.png", "clean/a.jpg", "clean/b.jpg"],
            [("rainy/a.png", "clean/a.jpg"), ("rainy/b.png", "clean/b.jpg")],
        ),
        ("cmudrn", Weather.SNOW, ["snowy/a.png", "clean/a.png"], [("snowy/a.png", "clean/a.png")]),
        (
            "CSD",
            Weather.SNOW,
            ["Snow/1.tif", "Snow/2.tif", "Gt/1.tif", "Gt/2.tif"],
            [("Snow/1.tif", "Gt/1.tif"), ("Snow/2.tif", "Gt/2.tif")],
        ),
        (
            "Snow100K",
            Weather.SNOW,
            ["synthetic/smile_3.jpg", "gt/smile_3.jpg"],
            [("synthetic/smile_3.jpg", "gt/smile_3.jpg")],
        ),
        (
            "Snow100K",
            Weather.SNOW,
            [f"Snow100K-{size}/{side}/1.jpg" for size in "SML" for side in ("synthetic", "gt", "mask")],
            [(f"Snow100K-{size}/synthetic/1.jpg", f"Snow100K-{size}/gt/1.jpg") for size in "LMS"],
        ),
        (
            "SRRS",
            Weather.SNOW,
            ["Syn/4.jpg", "gt/4.jpg", "Combine Snow/4.jpg", "Big Snow/4.jpg"],
            [("Syn/4.jpg", "gt/4.jpg")],
        ),
        ("SRRS", Weather.SNOW, ["Syn/4.jpg", "gt_new/4.jpg"], [("Syn/4.jpg", "gt_new/4.jpg")]),
        (
            "RainDS",  # drops on the lens alone are left out
            Weather.RAIN,
            [
                *("rainstreak/rain-1.png", "rainstreak/pie-rain-1.png"),
                *("rainstreak_raindrop/rd-rain-1.png", "rainstreak_raindrop/pie-rd-rain-1.png"),
                *("raindrop/rd-1.png", "raindrop/pie-rd-1.png"),
                *("gt/norain-1.png", "gt/pie-norain-1.png"),
            ],
            [
                ("rainstreak/pie-rain-1.png", "gt/pie-norain-1.png"),
                ("rainstreak/rain-1.png", "gt/norain-1.png"),
                ("rainstreak_raindrop/pie-rd-rain-1.png", "gt/pie-norain-1.png"),
                ("rainstreak_raindrop/rd-rain-1.png", "gt/norain-1.png"),
            ],
        ),
        (
            "RainDS",  # its real photographs
            Weather.RAIN,
            ["rainstreak/7.png", "rainstreak_raindrop/7.png", "raindrop/7.png", "gt/7.png"],
            [("rainstreak/7.png", "gt/7.png"), ("rainstreak_raindrop/7.png", "gt/7.png")],
        ),
        (
            "RainDS",  # another name for streaks with drops
            Weather.RAIN,
            ["rainstreak_raindrop/pie-rd_rs-1.png", "gt/pie-norain-1.png"],
            [("rainstreak_raindrop/pie-rd_rs-1.png", "gt/pie-norain-1.png")],
        ),
        (
            "Rain12",
            Weather.RAIN,
            ["input/001_in.png", "input/002_in.png", "groundtruth/001_GT.png", "groundtruth/002_GT.png"],
            [
                ("input/001_in.png", "groundtruth/001_GT.png"),
                ("input/002_in.png", "groundtruth/002_GT.png"),
            ],
        ),
        (
            "Rain12",
            Weather.RAIN,
            ["rainy/1.png", "groundtruth/1.png"],
            [("rainy/1.png", "groundtruth/1.png")],
        ),
        (
            "Rain100",  # one folder, with the layers that the first release has beside the images
            Weather.RAIN,
            ["rain-001.png", "norain-001.png", "rainstreak-001.png", "rainregion-001.png"],
            [("rain-001.png", "norain-001.png")],
        ),
        (
            "Rain100",
            Weather.RAIN,
            ["rain/rain-1.png", "norain/norain-1.png"],
            [("rain/rain-1.png", "norain/norain-1.png")],
        ),
        (
            "Rain100",  # the later release
            Weather.RAIN,
            ["rain/X2/norain-1x2.png", "norain/norain-1.png"],
            [("rain/X2/norain-1x2.png", "norain/norain-1.png")],
        ),
        (
            "Rain100",
            Weather.RAIN,
            ["rainy/rain-001.png", "norain-001.png"],
            [("rainy/rain-001.png", "norain-001.png")],
        ),
        (
            "Rain100",
            Weather.RAIN,
            ["rainy/norain-001.png", "norain-001.png"],
            [("rainy/norain-001.png", "norain-001.png")],
        ),
        (
            "Rain100",
            Weather.RAIN,
            ["input/rain-001.png", "target/norain-001.png"],
            [("input/rain-001.png", "target/norain-001.png")],
        ),
        (
            "pairs",
            None,
            ["input/x.JPG", "target/X.png", "input/y.webp", "target/y.tiff"],
            [("input/x.JPG", "target/X.png"), ("input/y.webp", "target/y.tiff")],
        ),
        ("pairs", None, ["input/x.png", "gt/x.png"], [("input/x.png", "gt/x.png")]),
    ],
)
def test_a_layout_is_told_by_its_folders(
    layout: str, weather: Weather | None, files: list[str], pairs: list[tuple[str, str]], tmp_path: Path
) -> None:
    root = lay(tmp_path / "some set", *files)
    found = find_pairs(root)
    assert (found.layout, found.root, found.weather, found.split) == (layout, root, weather, Split.ALL)
    assert names(found) == pairs


def test_rain1400_has_fourteen_rainy_images_of_each_clean_one(tmp_path: Path) -> None:
    rainy = [f"rainy_image/{scene}_{rain}.jpg" for scene in (901, 902) for rain in range(1, 15)]
    root = lay(tmp_path / "Rain1400", *rainy, "ground_truth/901.jpg", "ground_truth/902.jpg")
    found = find_pairs(root)
    assert found.layout == "Rain1400"
    assert [degraded for degraded, _ in names(found)] == rainy
    assert [clean for _, clean in names(found)] == ["ground_truth/901.jpg"] * 14 + [
        "ground_truth/902.jpg"
    ] * 14


def test_every_layout_has_a_name_of_its_own() -> None:
    assert len({layout.name for layout in LAYOUTS}) == len(LAYOUTS) == 9


def test_masks_go_with_their_images_where_a_set_has_them(tmp_path: Path) -> None:
    files = ["Snow/1.tif", "Snow/2.tif", "Gt/1.tif", "Gt/2.tif", "Mask/2.tif"]
    root = lay(tmp_path / "CSD", *files)
    assert [pair.mask for pair in find_pairs(root).pairs] == [None, root / "Mask" / "2.tif"]


def test_an_empty_folder_of_masks_is_no_masks(tmp_path: Path) -> None:
    root = lay(tmp_path / "CSD", "Snow/1.tif", "Gt/1.tif")
    (root / "Mask").mkdir()
    assert find_pairs(root).pairs[0].mask is None


def test_names_of_folders_are_matched_in_any_case(tmp_path: Path) -> None:
    root = lay(tmp_path / "csd", "TRAIN/SNOW/1.PNG", "TRAIN/gt/1.png")
    assert names(find_pairs(root, split=Split.TRAIN)) == [("TRAIN/SNOW/1.PNG", "TRAIN/gt/1.png")]


def test_2_stands_before_10(tmp_path: Path) -> None:
    root = lay(
        tmp_path / "a", *(f"{side}/{n}.png" for side in ("input", "target") for n in (10, 9, 2, 1, 100))
    )
    assert [pair.degraded.stem for pair in find_pairs(root).pairs] == ["1", "2", "9", "10", "100"]


def test_what_other_systems_leave_behind_is_not_seen(tmp_path: Path) -> None:
    root = lay(
        tmp_path / "a",
        *("input/1.png", "input/._1.png", "input/Thumbs.db", "input/.DS_Store", "input/notes.txt"),
        *("target/1.png", "target/._2.png", "target/desktop.ini"),
        *("__MACOSX/Snow/1.png", "__MACOSX/Gt/1.png", ".cache/Snow/1.png", ".cache/Gt/1.png"),
    )
    assert names(find_pairs(root)) == [("input/1.png", "target/1.png")]


def test_a_folder_named_as_an_image_is_not_one(tmp_path: Path) -> None:
    root = lay(tmp_path / "a", "input/1.png", "target/1.png", "input/2.png/notes.txt")
    assert len(find_pairs(root).pairs) == 1


# ---- Both weathers in one folder


def both_weathers(root: Path) -> Path:
    return lay(root, *(f"{side}/{n}.png" for side in ("rainy", "snowy", "clean") for n in range(10)))


@pytest.mark.parametrize(("weather", "side"), [(Weather.RAIN, "rainy"), (Weather.SNOW, "snowy")])
def test_the_weather_chooses_where_there_are_two(weather: Weather, side: str, tmp_path: Path) -> None:
    found = find_pairs(both_weathers(tmp_path / "made"), weather=weather)
    assert found.weather is weather
    assert names(found)[0] == (f"{side}/0.png", "clean/0.png")
    assert len(found.pairs) == 10


def test_both_weathers_are_cut_at_the_same_scenes(tmp_path: Path) -> None:
    root = both_weathers(tmp_path / "made")
    rain, snow = (find_pairs(root, split=Split.TEST, weather=weather) for weather in Weather)
    assert [pair.clean for pair in rain.pairs] == [pair.clean for pair in snow.pairs]


def test_the_weather_must_be_said_where_there_are_two(tmp_path: Path) -> None:
    fix = refused(UsageError, both_weathers(tmp_path / "made"), "made: holds rain and snow")
    assert "rain or snow" in fix


def test_a_weather_that_the_layout_does_not_hold_is_refused(tmp_path: Path) -> None:
    root = lay(tmp_path / "CSD", "Snow/1.tif", "Gt/1.tif")
    refused(UsageError, root, "the CSD layout holds no rain", weather=Weather.RAIN)


def test_pairs_that_do_not_say_their_weather_take_the_callers(tmp_path: Path) -> None:
    root = lay(tmp_path / "a", "input/1.png", "target/1.png")
    assert find_pairs(root, weather=Weather.SNOW).weather is Weather.SNOW


# ---- Splits

WHOLE_AND_HALVES = (Split.TRAIN, Split.TEST, Split.ALL)


def csd(root: Path, count: int) -> Path:
    return lay(root, *(f"{side}/{n}.tif" for side in ("Snow", "Gt") for n in range(1, count + 1)))


@pytest.mark.parametrize(("count", "trained"), [(10, 7), (11, 7), (2, 1)])  # floor(0.7 n)
def test_without_folders_the_first_70_percent_train(count: int, trained: int, tmp_path: Path) -> None:
    root = csd(tmp_path / "CSD", count)
    train, test = (find_pairs(root, split=split) for split in (Split.TRAIN, Split.TEST))
    assert [pair.clean.stem for pair in train.pairs] == [str(n) for n in range(1, trained + 1)]
    assert [pair.clean.stem for pair in test.pairs] == [str(n) for n in range(trained + 1, count + 1)]
    assert train.pairs + test.pairs == find_pairs(root).pairs


def test_no_scene_stands_on_both_sides_of_the_cut(tmp_path: Path) -> None:
    rainy = [f"rainy_image/{scene}_{rain}.jpg" for scene in range(1, 11) for rain in range(1, 4)]
    root = lay(tmp_path / "ddn", *rainy, *(f"ground_truth/{scene}.jpg" for scene in range(1, 11)))
    train, test = (find_pairs(root, split=split).pairs for split in (Split.TRAIN, Split.TEST))
    assert (len(train), len(test)) == (21, 9)
    assert not {pair.clean for pair in train} & {pair.clean for pair in test}


def test_one_scene_cannot_be_cut(tmp_path: Path) -> None:
    fix = refused(UsageError, csd(tmp_path / "CSD", 1), "1 scene cannot be cut", split=Split.TRAIN)
    assert "split all" in fix


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Train", "Test"),
        ("train2500", "test2000"),
        ("train_set", "test_set"),
        ("training", "testing"),
    ],
)
def test_folders_for_train_and_test_say_the_split(train: str, test: str, tmp_path: Path) -> None:
    root = tmp_path / "CSD"
    csd(root / train, 3)
    csd(root / test, 2)
    csd(root / "val", 1)  # neither split is validation
    assert [len(find_pairs(root, split=split).pairs) for split in WHOLE_AND_HALVES] == [3, 2, 5]
    assert find_pairs(root).root == root
    assert names(find_pairs(root))[0] == (f"{train}/Snow/1.tif", f"{train}/Gt/1.tif")


def test_snow100ks_three_sizes_of_flakes_are_its_test_set(tmp_path: Path) -> None:
    root = lay(
        tmp_path / "Snow100K",
        *("train/synthetic/a.jpg", "train/gt/a.jpg"),
        *(f"test/Snow100K-{size}/{side}/b.jpg" for size in "SML" for side in ("synthetic", "gt")),
    )
    assert [len(find_pairs(root, split=split).pairs) for split in WHOLE_AND_HALVES] == [1, 3, 4]


@pytest.mark.parametrize(
    ("name", "its", "other"),
    [
        ("Train", Split.TRAIN, Split.TEST),
        ("RainTrainL", Split.TRAIN, Split.TEST),
        ("Snow100K-training", Split.TRAIN, Split.TEST),
        ("Test100", Split.TEST, Split.TRAIN),
        ("Rain100H", Split.TEST, Split.TRAIN),
        ("rain_data_test_Light", Split.TEST, Split.TRAIN),
    ],
)
def test_a_folder_that_is_one_half_is_not_cut_and_not_taken_for_the_other(
    name: str, its: Split, other: Split, tmp_path: Path
) -> None:
    root = lay(tmp_path / name, *(f"{side}/{n}.png" for side in ("input", "target") for n in range(10)))
    assert len(find_pairs(root, split=its).pairs) == len(find_pairs(root).pairs) == 10
    fix = refused(UsageError, root, f"{name}: is a {its.value} set", split=other)
    assert "split all" in fix


def test_the_papers_cut_is_of_all_images_in_order_whatever_the_folders_say(tmp_path: Path) -> None:
    csd(tmp_path / "CSD" / "Train", 8)
    csd(tmp_path / "CSD" / "Test", 2)
    train, test = (
        [degraded for degraded, _ in names(find_pairs(tmp_path / "CSD", split=split))]
        for split in (Split.PAPER_TRAIN, Split.PAPER_TEST)
    )
    assert train == [f"Train/Snow/{n}.tif" for n in range(1, 8)]
    assert test == ["Train/Snow/8.tif", "Test/Snow/1.tif", "Test/Snow/2.tif"]


def test_without_folders_the_papers_cut_is_the_usual_one(tmp_path: Path) -> None:
    root = csd(tmp_path / "CSD", 10)
    for split, papers in ((Split.TRAIN, Split.PAPER_TRAIN), (Split.TEST, Split.PAPER_TEST)):
        assert find_pairs(root, split=split).pairs == find_pairs(root, split=papers).pairs


@pytest.mark.parametrize("split", [Split.PAPER_TRAIN, Split.PAPER_TEST])
def test_one_half_of_a_set_is_not_cut_as_the_papers_whole(split: Split, tmp_path: Path) -> None:
    root = csd(tmp_path / "CSD" / "Test", 10)
    fix = refused(UsageError, root, "is a test set, with no train set beside it", split=split)
    assert "give the folder that holds both" in fix


@pytest.mark.parametrize("name", ["latest", "restraint", "trains", "contest"])
def test_words_that_only_sound_like_a_split_are_none(name: str, tmp_path: Path) -> None:
    assert len(find_pairs(csd(tmp_path / name, 10), split=Split.TRAIN).pairs) == 7


# ---- Where the dataset lies


def test_a_dataset_one_level_below_is_found(tmp_path: Path) -> None:
    root = tmp_path / "data"
    csd(root / "CSD" / "Train", 2)
    csd(root / "CSD" / "Test", 1)
    lay(root, "papers/read.me", "realistic/1.jpg")
    found = find_pairs(root, split=Split.TEST)
    assert (found.root, len(found.pairs)) == (root / "CSD", 1)


def test_folders_that_archives_wrap_around_are_passed_through(tmp_path: Path) -> None:
    root = lay(tmp_path / "Snow100K-testset", "jdway/GameSSD/overlapping/test/Snow100K-L/synthetic/1.jpg")
    lay(root, "jdway/GameSSD/overlapping/test/Snow100K-L/gt/1.jpg")
    assert len(find_pairs(root, split=Split.TEST).pairs) == 1


def test_two_datasets_are_refused_by_their_names(tmp_path: Path) -> None:
    root = tmp_path / "data"
    csd(root / "CSD", 1)
    lay(root, "Rain100L/rain-1.png", "Rain100L/norain-1.png")
    with pytest.raises(UsageError) as caught:
        find_pairs(root)
    assert f"{root / 'CSD'} (CSD)" in caught.value.what
    assert f"{root / 'Rain100L'} (Rain100)" in caught.value.what
    assert f"give one of them, such as {root / 'CSD'}" in caught.value.fix


@pytest.mark.parametrize("beside", ["Test1200", "all"])
def test_a_dataset_beside_the_splits_is_not_passed_by_in_silence(beside: str, tmp_path: Path) -> None:
    for name in ("train", "Test100", beside):
        csd(tmp_path / "data" / name, 1)
    refused(UsageError, tmp_path / "data", "holds 3 datasets")


def test_a_link_that_leads_back_is_not_followed_for_ever(tmp_path: Path) -> None:
    root = tmp_path / "loop"
    root.mkdir()
    (root / "again").symlink_to(root)
    refused(UsageError, root, "no images in it")


# ---- What is no dataset


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    refused(UsageError, tmp_path / "none", "none: No such file")


def test_a_file_is_refused(tmp_path: Path) -> None:
    refused(UsageError, lay(tmp_path, "a.png") / "a.png", "a.png: Not a directory")


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    refused(UsageError, lay(tmp_path / "in", "a/b/notes.txt", "a/c/._x.png"), "in: no images in it")


def test_photographs_alone_are_told_to_be_trained_on_directly(tmp_path: Path) -> None:
    fix = refused(UsageError, lay(tmp_path / "photos", "a.jpg", "b.jpg"), "photos: 2 photographs, not pairs")
    assert "train on it directly" in fix


def test_an_unknown_layout_is_told_by_what_was_seen_and_what_is_known(tmp_path: Path) -> None:
    fix = refused(UsageError, lay(tmp_path / "x", "noisy/1.png", "Sharp/1.png"), "noisy/, Sharp/")
    assert all(f"{layout.name}: {layout.tree}" in fix for layout in LAYOUTS)
    assert "Clean photographs alone" in fix


@pytest.mark.parametrize("empty", ["Snow", "Gt"])
def test_an_empty_side_is_refused(empty: str, tmp_path: Path) -> None:
    root = csd(tmp_path / "CSD", 1)
    (root / empty / "1.tif").unlink()
    assert ".png" in refused(TrainingError, root, f"{empty}: no images in it")


# ---- Pairs that are none


def test_images_without_a_partner_are_named(tmp_path: Path) -> None:
    root = csd(tmp_path / "CSD", 9)
    for name in ("Gt/2.tif", "Gt/9.tif", "Snow/3.tif", "Snow/4.tif", "Snow/5.tif"):
        (root / name).unlink()
    fix = refused(
        TrainingError, root, r"5 images without a partner: Snow/2.tif, Snow/9.tif, Gt/3.tif, and 2 more \("
    )
    assert "remove them" in fix


@pytest.mark.parametrize("twice", ["input/1.jpg", "target/1.jpg", "input/1.PNG"])
def test_two_images_for_one_place_are_refused(twice: str, tmp_path: Path) -> None:
    root = lay(tmp_path / "a", "input/1.png", "target/1.png", twice)
    if len(list((root / "input").iterdir())) + len(list((root / "target").iterdir())) < 3:
        pytest.skip("this file system knows no case")
    refused(TrainingError, root, f"{twice}.* would be the same image|, {twice} would")


# ---- Sizes


def pair(root: Path, degraded: tuple[int, int], clean: tuple[int, int], name: str = "1.png") -> Pair:
    return Pair(draw(root / "input" / name, *degraded), draw(root / "target" / name, *clean))


def test_pairs_of_equal_size_pass(tmp_path: Path) -> None:
    check_sizes([pair(tmp_path, (8, 12), (8, 12))], crop_px=8)


def test_a_pair_that_differs_is_named_with_both_sizes(tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as caught:
        check_sizes([pair(tmp_path, (8, 12), (8, 12)), pair(tmp_path, (8, 12), (10, 12), "2.png")])
    assert f"{tmp_path / 'input' / '2.png'} is 8x12, {tmp_path / 'target' / '2.png'} is 10x12" in str(
        caught.value
    )
    assert "1 pair of no use (height x width)" in caught.value.what
    assert "remove both images" in caught.value.fix


def test_an_image_smaller_than_the_crop_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"1\.png is 8x12, smaller than the crop of 9") as caught:
        check_sizes([pair(tmp_path, (8, 12), (8, 12))], crop_px=9)
    assert "smaller crop" in caught.value.fix


def test_three_bad_pairs_are_named_and_all_are_counted(tmp_path: Path) -> None:
    bad = [pair(tmp_path, (8, 8), (8, 9), f"{n}.png") for n in range(5)]
    with pytest.raises(TrainingError, match=r"^5 pairs of no use .*0\.png.*1\.png.*2\.png.*; and 2 more \("):
        check_sizes(bad)


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n and no more"])
def test_a_file_that_is_no_image_is_named(content: bytes, tmp_path: Path) -> None:
    broken = pair(tmp_path, (8, 8), (8, 8))
    broken.clean.write_bytes(content)
    with pytest.raises(TrainingError, match=r"target/1\.png"):
        check_sizes([broken])


def test_a_file_that_went_away_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"gone\.png"):
        check_sizes([Pair(tmp_path / "gone.png", draw(tmp_path / "there.png"))])


@pytest.mark.parametrize(("bands", "bits"), [(1, 8), (4, 8), (1, 16), (3, 16), (4, 16)])
def test_grey_transparent_and_16_bit_images_are_fine(bands: int, bits: int, tmp_path: Path) -> None:
    degraded = draw(tmp_path / "a.png", bands=bands, bits=bits)
    check_sizes([Pair(degraded, draw(tmp_path / "b.png"))])


# ---- What a report says


def drawn_csd(root: Path) -> Path:
    for n in range(1, 4):
        draw(root / "Snow" / f"{n}.png", 8, n)
        draw(root / "Gt" / f"{n}.png", 9, n)
    return root


def test_a_set_describes_itself_in_a_line(tmp_path: Path) -> None:
    found = find_pairs(drawn_csd(tmp_path / "CSD-2021"), split=Split.TRAIN)
    assert found.describe() == "CSD layout in CSD-2021, train: 2 pairs (snow)"
    generic = lay(tmp_path / "mine", "input/1.png", "target/1.png")
    assert find_pairs(generic).describe() == "pairs layout in mine, all: 1 pair"


def test_a_manifest_says_all_but_where_the_set_lies(tmp_path: Path) -> None:
    found = find_pairs(drawn_csd(tmp_path / "CSD"))
    manifest = json.loads(json.dumps(found.manifest()))
    assert manifest == {
        "layout": "CSD",
        "root": "CSD",
        "split": "all",
        "weather": "snow",
        "count": 3,
        "sha256": found.sha256(),
    }


def test_a_folder_given_as_a_dot_has_its_name_in_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(drawn_csd(tmp_path / "CSD"))
    assert find_pairs(Path()).name == "CSD"


def test_the_hash_is_the_same_wherever_the_set_lies_and_without_masks(tmp_path: Path) -> None:
    here, there = drawn_csd(tmp_path / "here"), drawn_csd(tmp_path / "there" / "Train")
    draw(there / "Mask" / "1.png")
    assert find_pairs(here).sha256() == find_pairs(tmp_path / "there").sha256()


@pytest.mark.parametrize("change", ["content", "name", "swap", "split"])
def test_the_hash_sees_a_changed_byte_name_or_order(change: str, tmp_path: Path) -> None:
    root = drawn_csd(tmp_path / "CSD")
    before = find_pairs(root).sha256()
    if change == "content":
        draw(root / "Gt" / "2.png", 10, 2)
    elif change == "name":
        for side in ("Snow", "Gt"):
            (root / side / "2.png").rename(root / side / "2b.png")
    elif change == "swap":
        (root / "Gt" / "1.png").rename(root / "Gt" / "aside")
        (root / "Gt" / "2.png").rename(root / "Gt" / "1.png")
        (root / "Gt" / "aside").rename(root / "Gt" / "2.png")
    split = Split.TEST if change == "split" else Split.ALL
    assert find_pairs(root, split=split).sha256() != before


def test_the_hash_needs_all_files(tmp_path: Path) -> None:
    found = find_pairs(drawn_csd(tmp_path / "CSD"))
    (found.root / "Gt" / "2.png").unlink()
    with pytest.raises(TrainingError, match=r"2\.png: No such file"):
        found.sha256()
