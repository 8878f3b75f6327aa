"""`cmudrn synthesize`: from clean photographs to a paired dataset. The tests draw their own photographs."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pyvips
from numpy.typing import NDArray

import cmudrn.train.synthesize
from cmudrn.cli.app import main
from cmudrn.errors import ImageError
from cmudrn.images import read_picture
from cmudrn.train.layouts import Split, Weather, check_sizes, find_pairs
from cmudrn.train.photos import to_pixels, to_scene
from cmudrn.train.skies import ProceduralRain, ProceduralSnow

ROOT = Path(__file__).parent.parent


def draw(path: Path, size: tuple[int, int] = (40, 56), bands: int = 3, dtype: type = np.uint8) -> Path:
    """A photograph of random grey levels, dark enough for rain to show."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(path.name)).integers(0, np.iinfo(dtype).max // 2, (*size, bands))
    spaces = ("grey16", "rgb16") if dtype is np.uint16 else ("b-w", "srgb")
    space = spaces[bands > 2]
    image = pyvips.Image.new_from_array(pixels.astype(dtype)).copy(interpretation=space)
    image.write_to_file(str(path))
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two photographs, one of them deeper."""
    draw(tmp_path / "photos" / "a.jpg")
    draw(tmp_path / "photos" / "trip" / "b.png", (33, 47))
    return tmp_path / "photos"


def synthesize(*arguments: object) -> int:
    return main(["synthesize", *map(str, arguments)])


def manifest(out: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    return loaded


def files(out: Path) -> dict[str, bytes]:
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }


def pixels(path: Path) -> NDArray[Any]:
    return read_picture(path).pixels


# ---- What comes out


def test_every_photograph_becomes_a_clean_a_rainy_and_a_snowy_file_of_its_size(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert synthesize(photos, "-o", out, "--severity", 1) == 0
    names = {f"{side}/{name}.png" for side in ("clean", "rainy", "snowy") for name in "ab"}
    assert set(files(out)) == {"manifest.json", *names}
    for name, source in (("a", photos / "a.jpg"), ("b", photos / "trip" / "b.png")):
        clean = pixels(out / "clean" / f"{name}.png")
        np.testing.assert_array_equal(clean, pixels(source))
        for side in ("rainy", "snowy"):
            shown = pixels(out / side / f"{name}.png")
            assert shown.shape == clean.shape
            assert shown.dtype == np.uint8
            assert shown.mean() > clean.mean() + 2
    assert "4 pairs of 2 photographs, 0 left out" in capsys.readouterr().err


@pytest.mark.parametrize("weather", [Weather.RAIN, Weather.SNOW])
def test_the_layouts_find_the_pairs(photos: Path, tmp_path: Path, weather: Weather) -> None:
    assert synthesize(photos, "-o", tmp_path / "out") == 0
    found = find_pairs(tmp_path / "out", split=Split.ALL, weather=weather)
    assert (found.layout, found.weather) == ("cmudrn", weather)
    assert [pair.degraded.name for pair in found.pairs] == ["a.png", "b.png"]
    check_sizes(found.pairs)


def test_rain_alone_makes_a_dataset_of_rain(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert synthesize(photos, "-o", out, "--weather", "rain") == 0
    assert sorted(path.name for path in out.iterdir()) == ["clean", "manifest.json", "rainy"]
    assert find_pairs(out).weather is Weather.RAIN
    assert all("snow" not in image for image in manifest(out)["images"])


def test_the_manifest_tells_how_each_image_is_rendered_again(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert synthesize(photos, "-o", out, "--seed", 5) == 0
    said = manifest(out)
    assert said["seed"] == 5
    assert [image["source"] for image in said["images"]] == ["a.jpg", "trip/b.png"]
    for image in said["images"]:
        clean = pixels(out / image["clean"]["file"])
        assert clean.shape == (image["height"], image["width"], 3)
        for weather, sky in (("rain", ProceduralRain()), ("snow", ProceduralSnow())):
            made = image[weather]
            rng, severity, scale = np.random.default_rng(made["seed"]), made["severity"], made["scale"]
            again = sky.render(to_scene(clean), rng, severity=severity, scale=scale)
            np.testing.assert_array_equal(to_pixels(again.image), pixels(out / made["file"]))
            assert made["params"] == json.loads(json.dumps(asdict(again.params)))


def test_hashes_are_those_of_sha256sum(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert synthesize(photos, "-o", out) == 0
    said, lines = manifest(out), ""
    for name, content in files(out).items():
        if name != "manifest.json":
            lines += f"{hashlib.sha256(content).hexdigest()}  {name}\n"
    assert said["sha256"] == hashlib.sha256(lines.encode()).hexdigest()
    for image in said["images"]:
        for side in ("clean", "rain", "snow"):
            assert f"{image[side]['sha256']}  {image[side]['file']}\n" in lines


# ---- Chance


def test_equal_commands_give_equal_bytes_with_any_number_of_workers(photos: Path, tmp_path: Path) -> None:
    for workers in (1, 3):
        assert synthesize(photos, "-o", tmp_path / str(workers), "--workers", workers, "--seed", 2) == 0
    assert files(tmp_path / "1") == files(tmp_path / "3")


def test_another_seed_gives_other_weather_over_the_same_photographs(photos: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "1", tmp_path / "2"
    for seed, out in enumerate((one, two)):
        assert synthesize(photos, "-o", out, "--seed", seed) == 0
    for name, content in files(one).items():
        assert (content == files(two)[name]) is name.startswith("clean/")


def test_a_photograph_more_changes_nothing_for_the_others(photos: Path, tmp_path: Path) -> None:
    assert synthesize(photos, "-o", tmp_path / "few") == 0
    draw(photos / "0.png")
    assert synthesize(photos, "-o", tmp_path / "more") == 0
    few, more = files(tmp_path / "few"), files(tmp_path / "more")
    del few["manifest.json"]
    assert few.items() < more.items()


def test_severity_is_drawn_from_its_range_and_fixed_by_one_number(tmp_path: Path) -> None:
    for number in range(12):
        draw(tmp_path / "photos" / f"{number}.png", (8, 8))
    drawn = {}
    for text in ("0.4", "0.2-0.3"):
        command = (tmp_path / "photos", "-o", tmp_path / text, "--severity", text, "--weather", "snow")
        assert synthesize(*command) == 0
        drawn[text] = [image["snow"]["severity"] for image in manifest(tmp_path / text)["images"]]
    assert set(drawn["0.4"]) == {0.4}
    assert 0.2 <= min(drawn["0.2-0.3"]) < max(drawn["0.2-0.3"]) <= 0.3


def test_severity_zero_leaves_the_photographs_as_they_are(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert synthesize(photos, "-o", out, "--severity", 0) == 0
    made = files(out)
    assert made["clean/a.png"] == made["rainy/a.png"] == made["snowy/a.png"]


def test_drops_and_flakes_grow_with_the_longer_side_unless_told(photos: Path, tmp_path: Path) -> None:
    assert synthesize(photos, "-o", tmp_path / "own", "--weather", "snow") == 0
    assert [image["snow"]["scale"] for image in manifest(tmp_path / "own")["images"]] == [56 / 500, 47 / 500]
    assert synthesize(photos, "-o", tmp_path / "two", "--weather", "snow", "--scale", 2) == 0
    assert [image["snow"]["params"]["scale"] for image in manifest(tmp_path / "two")["images"]] == [2, 2]


def test_a_paired_dataset_is_not_rained_on_again(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert synthesize(photos, "-o", tmp_path / "pairs") == 0
    capsys.readouterr()
    assert synthesize(tmp_path / "pairs", "-o", tmp_path / "again") == 2
    assert "not clean photographs" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()
    assert synthesize(tmp_path / "pairs" / "clean", "-o", tmp_path / "again") == 0


# ---- The database's streaks


def test_with_streaks_the_databases_rain_takes_part(tmp_path: Path, streaks: Path) -> None:
    for number in range(12):
        draw(tmp_path / "photos" / f"{number}.png", (24, 32))
    out = tmp_path / "out"
    assert synthesize(tmp_path / "photos", "-o", out, "--streaks", streaks, "--weather", "rain") == 0
    said = manifest(out)
    assert {image["rain"]["renderer"] for image in said["images"]} == {"physics", "straight", "slanted"}
    assert said["options"]["streak_files"] == 8  # of ten: every fifth belongs to the protocols
    slanted = next(image["rain"] for image in said["images"] if image["rain"]["renderer"] == "slanted")
    assert slanted["params"]["recipe"]["slanted"] is True


def test_one_renderer_of_rain_can_be_chosen(photos: Path, tmp_path: Path, streaks: Path) -> None:
    out = tmp_path / "out"
    assert synthesize(photos, "-o", out, "--streaks", streaks, "--rain", "straight") == 0
    assert {image["rain"]["renderer"] for image in manifest(out)["images"]} == {"straight"}


def test_a_folder_with_the_protocols_streaks_alone_is_refused(
    photos: Path, tmp_path: Path, streaks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "held").mkdir()
    shutil.copy(streaks / "5-4.png", tmp_path / "held" / "5-4.png")
    assert synthesize(photos, "-o", tmp_path / "out", "--streaks", tmp_path / "held") == 2
    assert "kept for the protocols" in capsys.readouterr().err


# ---- What goes in


@pytest.mark.parametrize(
    ("name", "bands", "dtype"),
    [
        ("grey.png", 1, np.uint8),
        ("rgba.png", 4, np.uint8),
        ("ga.png", 2, np.uint8),
        ("deep.tif", 3, np.uint16),
    ],
)
def test_grey_transparent_and_16_bit_photographs_become_rgb_of_8_bits(
    name: str, bands: int, dtype: type, tmp_path: Path
) -> None:
    source, out = draw(tmp_path / name, bands=bands, dtype=dtype), tmp_path / "out"
    assert synthesize(source, "-o", out) == 0
    stored = pyvips.Image.new_from_file(str(source)).numpy().reshape(40, 56, bands).astype(np.float64)
    expected = stored / (257 if dtype is np.uint16 else 1)  # 65535 / 255
    clean = pixels(out / "clean" / f"{source.stem}.png")
    assert clean.shape == (40, 56, 3)
    assert clean.dtype == np.uint8
    shown = clean[..., :1] if bands <= 2 else clean
    assert np.abs(shown - expected[..., : shown.shape[2]]).max() <= 0.5 + 1e-3
    assert pixels(out / "rainy" / f"{source.stem}.png").shape == (40, 56, 3)


@pytest.mark.parametrize("size", [(1, 1), (1, 37), (211, 3), (65, 129)])
def test_any_size_will_do(size: tuple[int, int], tmp_path: Path, streaks: Path) -> None:
    draw(tmp_path / "a.png", size)
    out, options = tmp_path / "out", ("--streaks", streaks, "--rain", "slanted,straight,physics")
    assert synthesize(tmp_path / "a.png", "-o", out, *options, "--severity", 1) == 0
    for side in ("clean", "rainy", "snowy"):
        assert pixels(out / side / "a.png").shape == (*size, 3)


def test_photographs_of_one_name_get_names_of_their_own(tmp_path: Path) -> None:
    """Pairs are matched by stems without letter case: x.jpg, x.png and X.jpg would be one image."""
    sources = [draw(tmp_path / name) for name in ("one/x.jpg", "one/x.png", "two/X.jpg", "two/x-2.jpg")]
    out = tmp_path / "out"
    assert synthesize(tmp_path / "one", tmp_path / "two", "-o", out) == 0
    names = [image["name"] for image in manifest(out)["images"]]
    assert len({name.lower() for name in names}) == len(sources)
    assert len(find_pairs(out, split=Split.ALL, weather=Weather.SNOW).pairs) == 4


def test_a_photograph_that_is_named_twice_is_taken_once(photos: Path, tmp_path: Path) -> None:
    (photos / "loop").symlink_to(photos)
    assert synthesize(photos / "a.jpg", photos, photos / "a.jpg", "-o", tmp_path / "out") == 0
    assert len(manifest(tmp_path / "out")["images"]) == 2


def test_bad_files_among_good_ones_are_named_and_the_others_done(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "words.png").write_text("no picture")
    (photos / "empty.jpg").touch()
    (photos / "gone.tif").symlink_to("nowhere")
    (photos / "self.tif").symlink_to("self.tif")
    (photos / "cut.jpg").write_bytes((photos / "a.jpg").read_bytes()[:-200])
    (photos / "notes.txt").write_text("not looked at")
    out = tmp_path / "out"
    assert synthesize(photos, "-o", out) == 1
    said = capsys.readouterr().err
    for name in ("words.png", "empty.jpg", "gone.tif", "self.tif", "cut.jpg"):
        assert f"  {photos / name}: " in said
    assert "4 pairs of 2 photographs, 5 left out" in said
    assert manifest(out)["left_out"] == ["cut.jpg", "empty.jpg", "gone.tif", "self.tif", "words.png"]
    assert sorted(path.name for path in (out / "rainy").iterdir()) == ["a.png", "b.png"]


def test_where_nothing_can_be_read_there_is_no_dataset(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    assert synthesize(tmp_path / "a.png", "-o", tmp_path / "out") == 1
    assert not list((tmp_path / "out").iterdir())


# ---- What is refused


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["missing", "-o", "out"], "missing: no such file"),
        (["bare", "-o", "out"], "bare: no photographs"),
        (["photos"], "--out"),
        (["photos", "-o", "photos"], "one lies in the other"),
        (["photos", "-o", "photos/out"], "one lies in the other"),
        (["photos", "-o", "file"], "file: File exists"),
        (["photos", "-o", "out", "--weather", "hail"], "--weather hail"),
        (["photos", "-o", "out", "--severity", "much"], "--severity much"),
        (["photos", "-o", "out", "--severity", "0.9-0.1"], "--severity 0.9-0.1"),
        (["photos", "-o", "out", "--severity", "nan"], "--severity nan"),
        (["photos", "-o", "out", "--severity", "9"], "--severity 9"),
        (["photos", "-o", "out", "--scale", "0"], "--scale 0"),
        (["photos", "-o", "out", "--seed", "-1"], "--seed -1"),
        (["photos", "-o", "out", "--workers", "0"], "--workers 0"),
        (["photos", "-o", "out", "--rain", "storm"], "--rain storm"),
        (["photos", "-o", "out", "--rain", "slanted"], "of which streaks?"),
        (["photos", "-o", "out", "--streaks", "bare"], "no streak files"),
        (["photos", "-o", "out", "--weather", "snow", "--rain", "physics"], "without rain"),
    ],
)
def test_what_makes_no_sense_is_one_line_and_a_way_out(
    arguments: list[str],
    said: str,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "bare").mkdir()
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert synthesize(*arguments) == 2
    what, way_out = capsys.readouterr().err.splitlines()
    assert what.startswith("cmudrn: ")
    assert said in what
    assert way_out.startswith("  -> ")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dataset_is_replaced_when_told_and_leaves_nothing_behind(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert synthesize(photos, "-o", out) == 0
    assert synthesize(photos, "-o", out) == 2
    assert "is not empty" in capsys.readouterr().err
    assert synthesize(photos / "a.jpg", "-o", out, "--overwrite", "--weather", "snow") == 0
    assert set(files(out)) == {"manifest.json", "clean/a.png", "snowy/a.png"}
    assert find_pairs(out).weather is Weather.SNOW


@pytest.mark.parametrize("stranger", ["rainy/mine.png", "clean/deeper/x.txt", "notes.txt"])
def test_what_no_manifest_lists_is_never_replaced(
    stranger: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert synthesize(photos, "-o", out) == 0
    (out / stranger).parent.mkdir(exist_ok=True)
    (out / stranger).write_text("mine")
    before = files(out)
    assert synthesize(photos, "-o", out, "--overwrite") == 2
    assert stranger in capsys.readouterr().err
    assert files(out) == before


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"images": [1]}', '{"images": [{"clean": {}}]}'])
def test_a_manifest_of_another_kind_lists_nothing(text: str, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    draw(out / "clean" / "mine.png")
    (out / "manifest.json").write_text(text)
    assert synthesize(photos, "-o", out, "--overwrite") == 2
    assert (out / "clean" / "mine.png").exists()


def test_the_datasets_own_photographs_are_no_sources_of_it(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert synthesize(photos, "-o", out) == 0
    before = files(out)
    assert synthesize(out / "clean", "-o", out, "--overwrite") == 2
    assert files(out) == before


def test_a_disk_that_fails_ends_the_job_and_leaves_no_manifest(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(picture: object, path: Path) -> None:
        raise ImageError(f"{path}: No space left on device", fix="make room")

    monkeypatch.setattr(cmudrn.train.synthesize, "write_picture", fail)
    assert synthesize(photos, "-o", tmp_path / "out") == 1
    assert "No space left" in capsys.readouterr().err
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_the_options_in_the_document_are_there(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / "weather.md").read_text(encoding="utf-8")
    shown = re.findall(r"cmudrn synthesize[^\n`]*", text)
    assert main(["synthesize", "--help"]) == 0
    listed = capsys.readouterr().out
    assert shown
    for option in {option for line in shown for option in re.findall(r"(?<!\w)--?[a-z][a-z-]*", line)}:
        assert re.search(rf"(?<![\w-]){option}\b", listed), option
