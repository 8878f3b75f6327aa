"""The command that runs the paper's ablation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cmudrn.cli.train import (
    BFloat16,
    Crop,
    KernelsName,
    OptimizerChoice,
    Scenes,
    Seed,
    Stitches,
    StreakFiles,
    Streaks,
    Threads,
    Workers,
)
from cmudrn.cli.values import need_positive, need_torch, one_of, parse_factors

__all__ = ["ablate", "register"]

Photos = Annotated[list[Path], typer.Argument(metavar="PHOTOS...", help="Folders of clean photographs.")]
Validation = Annotated[Path, typer.Option(metavar="DIR", help="Clean photographs to score on.")]
GridName = Annotated[
    str, typer.Option("--grid", metavar="NAME", help="table (the paper's Table I), alpha, or points.")
]
Out = Annotated[
    Path, typer.Option("--out", "-o", metavar="DIR", help="Runs and table go to DIR/GRID; gone on with.")
]
RowSteps = Annotated[int, typer.Option("--steps", metavar="N", help="Steps of each row.")]
RowLoops = Annotated[int, typer.Option("--loops", metavar="N", help="T of every row; the paper has 3.")]


def register(app: typer.Typer) -> None:
    """Adds the command to the application."""
    app.command()(ablate)


def ablate(
    photos: Photos,
    validation: Validation,
    streaks: Streaks = None,
    streak_files: StreakFiles = 60,
    grid: GridName = "table",
    out: Out = Path("runs/ablation"),
    steps: RowSteps = 1_000,
    loops: RowLoops = 2,
    scenes: Scenes = 8,
    crop: Crop = 48,
    stitches: Stitches = None,
    optimizer: OptimizerChoice = None,
    bfloat16: BFloat16 = False,
    kernels: KernelsName = "auto",
    workers: Workers = 1,
    threads: Threads = None,
    seed: Seed = 0,
) -> None:
    """Train the rows of the paper's Table I, or of a search over the stitches, on equal terms."""
    need_positive(threads=threads, loops=loops, streak_files=streak_files)
    need_torch()
    import torch

    from cmudrn.model import ModelConfig
    from cmudrn.train.ablation import Grid, rows_of, run_ablation, write_table
    from cmudrn.train.data import Data, open_data
    from cmudrn.train.kernels import Kernels
    from cmudrn.train.optimizer import USUAL_RATES, OptimizerName, build_optimizer
    from cmudrn.train.recipe import TrainRecipe
    from cmudrn.train.scenes import SceneSteps
    from cmudrn.train.session import Pace

    pace = Pace(workers=workers)
    rows_asked, convolutions = one_of(Grid, "--grid", grid), one_of(Kernels, "--kernels", kernels)
    chosen_optimizer = one_of(OptimizerName, "--optimizer", optimizer or OptimizerName.SOAP.value)
    chosen = {} if stitches is None else {"stitches": parse_factors("stitches", stitches)}
    base = TrainRecipe(
        steps=steps,
        scenes=scenes,
        crop_px=crop,
        depths=(loops,),
        optimizer=chosen_optimizer,
        learning_rate=USUAL_RATES[chosen_optimizer],
        ema=0.99,  # a thousand steps are too few for a longer memory
        warmup_steps=50,
        bfloat16=bfloat16,
        float32_steps=steps // 10,
        seed=seed,
        model=ModelConfig(inter_loops=loops, intra_loops=loops, **chosen),
    )
    build_optimizer(base.optimizer, torch.nn.Linear(1, 1), base.learning_rate)  # missing? said now
    if threads:
        torch.set_num_threads(threads)
    rows, folder = rows_of(rows_asked, base), out / rows_asked.value
    data = Data(photos=tuple(photos), streaks=streaks, validation=validation, max_streak_files=streak_files)
    opened = open_data(data, crop)
    assert opened.fixed is not None
    drawn = SceneSteps(opened.sources, scenes=scenes, seed=seed)
    results = []
    for result in run_ablation(
        rows,
        folder,
        drawn,
        opened.fixed,
        opened.provenance,
        kernels=convolutions,
        workers=pace.workers,
        tell=tell,
    ):
        results.append(result)
        write_table(results, base, opened.provenance, folder)
        typer.echo(f"{result.name}: {', '.join(shown(result.rain, result.snow))}")
    typer.echo(f"{folder / 'table.md'}, {folder / 'table.csv'}")


def tell(row: str, step: int, steps_per_s: float) -> None:
    """One line every 50 steps, on standard error: the results alone go to standard output."""
    typer.echo(f"  {row}: step {step}, {steps_per_s:.2f} steps/s", err=True)


def shown(rain: object, snow: object) -> list[str]:
    """`rain 24.10 dB`, `snow 23.50 dB`; what a baseline does not see is left out."""
    return [
        f"{name} {score.psnr_db:.2f} dB, SSIM {score.ssim:.4f}"  # type: ignore[attr-defined]
        for name, score in (("rain", rain), ("snow", snow))
        if score is not None
    ]
