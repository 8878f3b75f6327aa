"""Commands of the stage `train`: they parse, call and print."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cmudrn.cli.values import need_positive, need_torch, one_of, parse_depths, parse_factors
from cmudrn.errors import UsageError

if TYPE_CHECKING:
    from cmudrn.train.recipe import TrainRecipe

__all__ = ["register", "train"]

Photos = Annotated[
    list[Path] | None,
    typer.Argument(metavar="[PHOTOS]...", help="Folders of clean photographs.", show_default=False),
]
Pairs = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[rain:|snow:][paper:]DIR",
        help="Paired dataset, its training half (paper: the first 70 % of the whole); repeatable.",
        show_default=False,
    ),
]
Streaks = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Streak files of the Columbia database, <id>-<type>.png; without: rain from physics alone.",
        show_default=False,
    ),
]
StreakFiles = Annotated[int, typer.Option(metavar="N", help="Of these, spread evenly: 7 MB of memory each.")]
Validation = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Clean photographs to choose weights on.", show_default=False),
]
Run = Annotated[
    Path,
    typer.Option("--out", "-o", metavar="DIR", help="The run's folder; one with a run in it is resumed."),
]
StartFrom = Annotated[
    str | None,
    typer.Option(metavar="NAME|FILE", help="Weights that a new run begins with.", show_default=False),
]
NetworkName = Annotated[
    str, typer.Option("--network", metavar="NAME", help="cmudrn, or a baseline: drn-rain, drn-snow.")
]
Paper = Annotated[
    bool,
    typer.Option("--paper", help="The paper's recipe: Adam, 1e-4, T = 3, alpha = 0.5, the loss as printed."),
]
Steps = Annotated[int, typer.Option(metavar="N", help="Steps in all, those of a resumed run included.")]
Scenes = Annotated[int, typer.Option(metavar="N", help="Scenes a step; each is seen rainy and snowy.")]
Crop = Annotated[int, typer.Option(metavar="PIXELS", help="Side of the square crops.")]
Depths = Annotated[
    str | None,
    typer.Option(
        "--loops", metavar="N|A-B", help="Loop counts to serve, drawn anew each step [default: 1-7]."
    ),
]
DefaultLoops = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Loop count of those who ask for none [default: 3, or the deepest].",
        show_default=False,
    ),
]
Stitches = Annotated[
    str | None,
    typer.Option(
        metavar="POINT=ALPHA,...",
        help="Cross-stitches at stem, block1, block2, body; '' for none [default: stem=0.9,body=0.9].",
        show_default=False,
    ),
]
Loss = Annotated[
    str,
    typer.Option(
        metavar="NAME=X,...",
        help="Factors: local, recur, global, ssim, frobenius, squared, root, log, stability.",
    ),
]
OptimizerChoice = Annotated[
    str | None,
    typer.Option("--optimizer", metavar="NAME", help="soap, or adam, the paper's [default: soap]."),
]
Rate = Annotated[
    float | None,
    typer.Option(metavar="X", help="Highest learning rate [default: soap 5e-3, adam 1e-3; the paper: 1e-4]."),
]
Average = Annotated[
    float | None,
    typer.Option("--ema", metavar="X", help="Running average of weights [default: 0.999; 0: none]."),
]
BFloat16 = Annotated[
    bool, typer.Option("--bfloat16", help="Mixed precision: about twice as fast where the CPU has bfloat16.")
]
Float32Steps = Annotated[int, typer.Option(metavar="N", help="Last steps, in float32 all the same.")]
KernelsName = Annotated[
    str,
    typer.Option(
        "--kernels", metavar="NAME", help="Convolutions: winograd (ours, CPU, float32), torch, or auto."
    ),
]
Devices = Annotated[int, typer.Option(metavar="N", help="Processes that share a step's scenes.")]
Accelerator = Annotated[str, typer.Option(metavar="NAME", help="cpu, cuda, mps or auto.")]
Workers = Annotated[int, typer.Option(metavar="N", help="Processes that render weather.")]
Threads = Annotated[int | None, typer.Option(metavar="N", help="Of the training.", show_default=False)]
Seed = Annotated[int, typer.Option(metavar="N", help="Of weights, scenes and depths.")]


def register(app: typer.Typer) -> None:
    """Adds the command to the application."""
    app.command()(train)


def train(
    photos: Photos = None,
    pairs: Pairs = None,
    streaks: Streaks = None,
    streak_files: StreakFiles = 220,
    validation: Validation = None,
    out: Run = Path("runs/default"),
    start_from: StartFrom = None,
    network: NetworkName = "cmudrn",
    paper: Paper = False,
    steps: Steps = 15_000,
    scenes: Scenes = 8,
    crop: Crop = 64,
    loops: Depths = None,
    default_loops: DefaultLoops = None,
    stitches: Stitches = None,
    loss: Loss = "",
    optimizer: OptimizerChoice = None,
    learning_rate: Rate = None,
    ema: Average = None,
    bfloat16: BFloat16 = False,
    float32_steps: Float32Steps = 2_000,
    kernels: KernelsName = "auto",
    devices: Devices = 1,
    accelerator: Accelerator = "cpu",
    workers: Workers = 1,
    threads: Threads = None,
    seed: Seed = 0,
) -> None:
    """Train weights on clean photographs with rain and snow laid over them."""
    need_positive(threads=threads, streak_files=streak_files)
    need_torch()
    import torch

    from cmudrn.cli.progress import TrainingProgress
    from cmudrn.train.data import Data, parse_pairs
    from cmudrn.train.kernels import Kernels
    from cmudrn.train.session import Pace, open_fabric, open_session

    changes: dict[str, Any] = {
        "steps": steps,
        "scenes": scenes,
        "crop_px": crop,
        "bfloat16": bfloat16,
        "seed": seed,
    }
    optional = {"learning_rate": learning_rate, "ema": ema}
    changes |= {name: value for name, value in optional.items() if value is not None}
    recipe = make_recipe(
        paper=paper,
        network=network,
        loops=loops,
        default_loops=default_loops,
        stitches=stitches,
        loss=loss,
        optimizer=optimizer,
        **changes,
        float32_steps=float32_steps,
    )
    if threads:
        torch.set_num_threads(threads)
    convolutions = one_of(Kernels, "--kernels", kernels)
    fabric = open_fabric(devices, accelerator)
    paired = tuple(parse_pairs(folder) for folder in pairs or ())
    data = Data(
        photos=tuple(photos or ()),
        streaks=streaks,
        pairs=paired,
        validation=validation,
        max_streak_files=streak_files,
    )
    pace = Pace(workers=workers)
    session = open_session(recipe, out, data, fabric=fabric, start_from=start_from, kernels=convolutions)
    with TrainingProgress(session.trainer.step, steps, shown=fabric.is_global_zero) as progress:
        told = session.trainer.provenance
        clean = f"{told['photos']} photographs, {told['streak_files']} streak files"
        progress.begin(out, session.trainer.kernels.value, [clean, *(found.describe() for found in paired)])
        session.train(pace, progress.tell)
        progress.end(out)


def make_recipe(
    *,
    paper: bool,
    network: str,
    loops: str | None,
    default_loops: int | None,
    stitches: str | None,
    loss: str,
    optimizer: str | None,
    **changes: Any,
) -> TrainRecipe:
    """The recipe, ours or the paper's, with what the options change. Raises UsageError."""
    from dataclasses import replace

    from cmudrn.model import PAPER_STITCHES, ModelConfig
    from cmudrn.train.losses import LossWeights
    from cmudrn.train.optimizer import USUAL_RATES, OptimizerName
    from cmudrn.train.recipe import Network, TrainRecipe

    trained_network = one_of(Network, "--network", network)
    if loops is not None:
        changes["depths"] = parse_depths(loops)
    depths = changes.get("depths", TrainRecipe.paper().depths if paper else TrainRecipe().depths)
    usual = (3 if 3 in depths else max(depths)) if default_loops is None else default_loops
    if usual not in depths:
        raise UsageError(f"--default-loops {usual}", fix=f"give one of those trained: {depths}")
    model: dict[str, Any] = {"inter_loops": usual, "intra_loops": usual}
    if stitches is not None:
        model["stitches"] = parse_factors("stitches", stitches)
    elif paper:
        model["stitches"] = PAPER_STITCHES
    if optimizer is not None:
        changes["optimizer"] = one_of(OptimizerName, "--optimizer", optimizer)
        if not paper:
            changes.setdefault("learning_rate", USUAL_RATES[changes["optimizer"]])
    weights = LossWeights.paper() if paper else LossWeights()
    factors: dict[str, Any] = {
        {"global": "global_"}.get(name, name): x for name, x in parse_factors("loss", loss).items()
    }
    if unknown := set(factors) - (set(vars(weights)) - {"reduction"}):
        known = ", ".join(name.strip("_") for name in vars(weights) if name != "reduction")
        raise UsageError(f"--loss: no factor {unknown.pop()!r}", fix=f"choose from {known}")
    changes |= {
        "network": trained_network,
        "model": ModelConfig(**model),
        "loss": replace(weights, **factors),
    }
    return TrainRecipe.paper(**changes) if paper else TrainRecipe(**changes)
