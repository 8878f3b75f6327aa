"""The paper's Table I, the line search over alpha and the search over stitch points, by equal training.

Every row is a run of its own, in its own folder, with the same scenes, steps and seed; it differs from the
base in what its name says. A finished row is not run again, one that was interrupted is gone on with.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

import torch

from cmudrn.errors import UsageError
from cmudrn.files import replacing
from cmudrn.model import ModelConfig
from cmudrn.train.kernels import Kernels
from cmudrn.train.loop import Trainer
from cmudrn.train.recipe import Network, TrainRecipe
from cmudrn.train.run_state import STATE_NAME, first_difference, read_state
from cmudrn.train.scenes import SceneBatch, SceneSteps
from cmudrn.train.validation import Scores, score_network

__all__ = ["Ablation", "Grid", "Row", "rows_of", "run_ablation", "write_table"]


class Grid(str, Enum):
    """Which rows are run."""

    TABLE = "table"  # the paper's Table I: CS, SSIM, Frobenius, global, local on and off; the baselines
    ALPHA = "alpha"  # the line search over alpha, at the base's stitch points
    POINTS = "points"  # where the stitches stand, with the base's alpha


@dataclass(frozen=True)
class Row:
    """One run of a grid."""

    name: str
    recipe: TrainRecipe
    paper: Mapping[str, float] | None = None  # the paper's figures at T = 3: psnr and ssim, rain and snow

    def place(self, folder: Path) -> Path:
        """Its run's folder, below the grid's."""
        return folder / self.name.replace(" ", "-").replace(",", "").replace("@", "-")


@dataclass(frozen=True)
class Ablation:
    """A finished row; a baseline has no score under the other weather."""

    name: str
    rain: Scores | None
    snow: Scores | None
    paper: Mapping[str, float] | None


def figures(rain_psnr: float, rain_ssim: float, snow_psnr: float, snow_ssim: float) -> dict[str, float]:
    return {
        "rain_psnr_db": rain_psnr,
        "rain_ssim": rain_ssim,
        "snow_psnr_db": snow_psnr,
        "snow_ssim": snow_ssim,
    }


ALPHAS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
POINT_SETS = (
    ("stem",),
    ("body",),
    ("block1",),
    ("block2",),
    ("stem", "body"),
    ("block1", "block2"),
    ("stem", "block1", "block2", "body"),
)


def rows_of(grid: Grid, base: TrainRecipe) -> list[Row]:
    """The grid's rows; the base is the full model."""

    def stitched(stitches: dict[str, float]) -> TrainRecipe:
        model = base.model
        config = ModelConfig(inter_loops=model.inter_loops, intra_loops=model.intra_loops, stitches=stitches)
        return replace(base, model=config)

    points = dict(base.model.stitches)
    if grid is not Grid.TABLE and not points:
        raise UsageError(f"--grid {grid.value}: no stitch to vary", fix="give --stitches stem=0.5,body=0.5")
    if grid is Grid.ALPHA:
        return [Row(f"alpha {alpha}", stitched(dict.fromkeys(points, alpha))) for alpha in ALPHAS]
    if grid is Grid.POINTS:
        alpha = next(iter(points.values()))
        return [Row("none", stitched({}))] + [
            Row(" ".join(where), stitched(dict.fromkeys(where, alpha))) for where in POINT_SETS
        ]
    loss, apart = base.loss, stitched({})
    no_ssim, no_frobenius = replace(loss, ssim=0.0), replace(loss, frobenius=0.0)
    return [
        Row("full", base, figures(25.82, 0.82, 23.62, 0.84)),
        Row("DRN@rain", replace(base, network=Network.DRN_RAIN)),
        Row("DRN@snow", replace(base, network=Network.DRN_SNOW)),
        Row("no CS", apart, figures(25.21, 0.81, 23.32, 0.82)),
        Row("no SSIM", replace(base, loss=no_ssim), figures(25.07, 0.80, 23.11, 0.82)),
        Row("no CS, no SSIM", replace(apart, loss=no_ssim), figures(25.07, 0.80, 23.03, 0.82)),
        Row("no Frobenius", replace(base, loss=no_frobenius), figures(24.73, 0.86, 22.27, 0.87)),
        Row("no CS, no Frobenius", replace(apart, loss=no_frobenius), figures(24.11, 0.84, 22.32, 0.87)),
        Row("no local", replace(base, loss=replace(loss, local=0.0)), figures(24.69, 0.81, 22.97, 0.83)),
        Row("no recur", replace(base, loss=replace(loss, recur=0.0))),
        Row("no global", replace(base, loss=replace(loss, global_=0.0))),
    ]


def run_ablation(
    rows: list[Row],
    folder: Path,
    scenes: SceneSteps,
    fixed: SceneBatch,
    provenance: dict[str, Any],
    *,
    kernels: Kernels = Kernels.AUTO,
    workers: int,
    tell: Callable[[str, int, float], None],
) -> Iterator[Ablation]:
    """Trains row after row and yields each with its scores on the fixed scenes.

    tell: gets the row's name, its step and the steps a second, every 50 steps.
    Raises UsageError, before the first row, where one was begun on other terms.
    """
    for row in rows:
        check_terms(row.place(folder), row.recipe, provenance)
    for row in rows:
        place = row.place(folder)
        done = place / "scores.json"
        trainer = Trainer(row.recipe, place, provenance, kernels=kernels)
        if not done.is_file():
            trainer.resume()
            for progress in trainer.run(scenes, workers=workers, report_every=50, save_every=200):
                tell(row.name, progress.step, progress.steps_per_s)
            rain, snow = score_network(trainer, fixed)
            with replacing(done) as file:
                scores = {"rain": rain and asdict(rain), "snow": snow and asdict(snow)}
                file.write(json.dumps(scores | {"recipe": row.recipe.to_json(), "data": provenance}).encode())
        kept = json.loads(done.read_bytes())
        rain, snow = (Scores(**kept[name]) if kept[name] else None for name in ("rain", "snow"))
        yield Ablation(row.name, rain, snow, row.paper)


def check_terms(place: Path, recipe: TrainRecipe, provenance: Mapping[str, Any]) -> None:
    """Raises UsageError where a row was begun with another recipe, number of steps, or data.

    Equal terms are the point of a table: here not even the steps may differ.
    """
    done, state = place / "scores.json", read_state(place / STATE_NAME, torch.device("cpu"))
    if done.is_file():
        kept = json.loads(done.read_bytes())
        begun = {**kept["recipe"], "data": kept["data"]}
    elif state is not None:
        begun = {**state["recipe"], "data": state["provenance"]}
    else:
        return
    now = {**recipe.to_json(), "data": provenance}
    changed = first_difference(begun, dict.fromkeys(begun) | now)  # nor may anything be missing
    if changed:
        raise UsageError(
            f"{place}: this row was begun with {changed}",
            fix="give the options it was begun with, or another --out",
        )


def write_table(
    results: list[Ablation], base: TrainRecipe, provenance: Mapping[str, Any], folder: Path
) -> None:
    """`table.md` and `table.csv`: ours, at this budget, beside the paper's own where it has them.

    The paper's are of other images: only differences between its rows can be compared with ours.
    """
    names = ("rain_psnr_db", "rain_ssim", "snow_psnr_db", "snow_ssim")
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["row", *names, *(f"paper_{name}" for name in names)])
    lines = [
        f"T = {base.model.inter_loops}, {base.steps} steps of {base.scenes} scenes of "
        f"{base.crop_px}x{base.crop_px}, {base.optimizer.value} at {base.learning_rate:g}, seed {base.seed}; "
        "the paper: T = 3, CSD, its own rain.",
        "",
        f"Trained on {provenance['photos']} photographs, SHA-256 {provenance['photos_sha256'][:16]}, and "
        f"{provenance['streak_files']} streak files; scored on photographs "
        f"{provenance['validation_sha256'][:16]}.",
        "",
        "| row | rain, dB | SSIM | snow, dB | SSIM | paper: rain | SSIM | snow | SSIM |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        ours = [
            None if scores is None else value
            for scores in (result.rain, result.snow)
            for value in ((scores.psnr_db, scores.ssim) if scores else (None, None))
        ]
        theirs = [result.paper[name] if result.paper else None for name in names]
        table.writerow([result.name, *ours, *theirs])
        shown = [
            "" if value is None else f"{value:.{digits}f}"
            for value, digits in zip([*ours, *theirs], (2, 4, 2, 4, 2, 2, 2, 2), strict=True)
        ]
        lines.append("| " + " | ".join([result.name, *shown]) + " |")
    for name, content in (("table.csv", text.getvalue()), ("table.md", "\n".join(lines) + "\n")):
        with replacing(folder / name) as file:
            file.write(content.encode())
