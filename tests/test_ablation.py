"""The ablation's rows, their runs and the table."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import pyvips

from cmudrn.cli.app import main
from cmudrn.errors import UsageError
from cmudrn.model import ModelConfig
from cmudrn.train.ablation import Grid, rows_of
from cmudrn.train.recipe import Network, TrainRecipe

BASE = TrainRecipe(model=ModelConfig(stitches={"stem": 0.8, "body": 0.8}))


def test_the_table_has_the_papers_rows_and_each_differs_from_the_full_model_in_what_it_says() -> None:
    rows = {row.name: row for row in rows_of(Grid.TABLE, BASE)}
    assert rows["full"].recipe == BASE
    assert rows["no CS"].recipe.model.stitches == {}
    assert rows["no CS"].recipe.loss == BASE.loss
    both = rows["no CS, no Frobenius"].recipe
    assert (both.model.stitches, both.loss.frobenius, both.loss.ssim) == ({}, 0, BASE.loss.ssim)
    assert rows["no local"].recipe.loss.local == 0
    assert rows["DRN@snow"].recipe.network is Network.DRN_SNOW
    paper = rows["no Frobenius"].paper
    assert paper is not None
    assert list(paper.values()) == [24.73, 0.86, 22.27, 0.87]  # DESIGN 2, from Table I


def test_the_searches_vary_alpha_and_points_alone() -> None:
    alphas = [row.recipe.model.stitches for row in rows_of(Grid.ALPHA, BASE)]
    assert alphas[0] == {"stem": 0.5, "body": 0.5}
    assert alphas[-1] == {"stem": 1.0, "body": 1.0}
    points = [row.recipe.model.stitches for row in rows_of(Grid.POINTS, BASE)]
    assert points[0] == {}
    assert {"stem": 0.8, "block1": 0.8, "block2": 0.8, "body": 0.8} in points


@pytest.mark.parametrize("grid", [Grid.ALPHA, Grid.POINTS])
def test_without_a_stitch_there_is_nothing_to_search(grid: Grid) -> None:
    with pytest.raises(UsageError, match="no stitch to vary"):
        rows_of(grid, TrainRecipe(model=ModelConfig(stitches={})))


@pytest.fixture(scope="module")
def command(evaluation_data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("ablation")
    photo = np.random.default_rng(1).integers(0, 255, (130, 140, 3), dtype=np.uint8)
    (folder / "held").mkdir()
    pyvips.Image.new_from_array(photo).write_to_file(str(folder / "held" / "a.png"))
    return [
        *("ablate", str(evaluation_data / "bsds500" / "val")),
        *("--streaks", str(evaluation_data / "garg06_streaks"), "--validation", str(folder / "held")),
        *("--steps", "2", "--loops", "1", "--scenes", "1", "--crop", "24", "--workers", "0"),
        *("-o", str(folder / "out")),
    ]


def test_a_finished_row_is_not_run_again_and_the_table_stands_in_two_forms(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(command[-1]) / "table"
    assert main(command) == 0
    first = (out / "table.csv").read_bytes()
    times = {path: path.stat().st_mtime_ns for path in out.rglob("scores.json")}
    assert len(times) == len(rows_of(Grid.TABLE, BASE))
    (out / "no-CS" / "scores.json").unlink()  # as if it had been interrupted there
    del times[out / "no-CS" / "scores.json"]
    assert main(command) == 0
    assert (out / "table.csv").read_bytes() == first
    assert {path: path.stat().st_mtime_ns for path in times} == times
    rows = list(csv.DictReader(first.decode().splitlines()))
    assert rows[0]["row"] == "full"
    assert float(rows[0]["rain_psnr_db"]) > 5
    baseline = next(row for row in rows if row["row"] == "DRN@rain")
    assert baseline["snow_psnr_db"] == ""  # it never sees snow
    assert "| full |" in (out / "table.md").read_text()
    assert "25.82" in (out / "table.md").read_text()
    assert "soap at 0.005, seed 0" in (out / "table.md").read_text()


def test_rows_of_another_budget_are_not_mixed_in(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    main(command)
    again = [*command, "--scenes", "2"]
    assert main(again) == 2
    assert "begun with scenes = 1, not 2" in capsys.readouterr().err
    assert main([*command, "--optimizer", "adam"]) == 2
    assert "begun with optimizer = soap, not adam" in capsys.readouterr().err
    first = Path(command[-1]) / "table" / "full"
    shutil.rmtree(first)
    assert main([*command, "--steps", "3"]) == 2  # finished rows
    assert "begun with steps = 2, not 3" in capsys.readouterr().err
    assert not first.exists()  # found before the first row is trained
    for done in Path(command[-1]).rglob("scores.json"):
        done.unlink()
    assert main([*command, "--steps", "3"]) == 2  # rows that were interrupted
    assert "begun with steps = 2, not 3" in capsys.readouterr().err
    assert main([*command, "--grid", "tables"]) == 2
