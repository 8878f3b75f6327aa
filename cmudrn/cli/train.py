"""Commands of the stage `train`: they parse, call and print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cmudrn.errors import EnvironmentMissing, UsageError

__all__ = ["evaluate", "register", "train"]

Photos = Annotated[list[Path], typer.Argument(metavar="PHOTOS", help="Folders of clean photographs.")]
Streaks = Annotated[
    Path, typer.Option(metavar="DIR", help="Streak files of the Columbia database, <id>-<type>.png.")
]
Run = Annotated[
    Path,
    typer.Option("--out", "-o", metavar="DIR", help="The run's folder; one with a run in it is resumed."),
]
Steps = Annotated[int, typer.Option(metavar="N", help="Steps in all, those of a resumed run included.")]
Scenes = Annotated[int, typer.Option(metavar="N", help="Scenes a step; each is seen rainy and snowy.")]
Crop = Annotated[int, typer.Option(metavar="PIXELS", help="Side of the square crops.")]
TrainLoops = Annotated[int, typer.Option(metavar="N", help="Recursions to train with.")]
Rate = Annotated[float, typer.Option(metavar="X", help="Highest learning rate; the paper has 1e-4.")]
BFloat16 = Annotated[
    bool, typer.Option("--bfloat16", help="Mixed precision: about twice as fast where the CPU has bfloat16.")
]
Threads = Annotated[int | None, typer.Option(metavar="N", help="Of the training.", show_default=False)]
Seed = Annotated[int, typer.Option(metavar="N", help="Of weights, crops and weather.")]
ProtocolName = Annotated[str, typer.Argument(metavar="bsd-rain|bsd-snow", help="Which protocol.")]
Data = Annotated[
    Path, typer.Option(metavar="DIR", help="The folder with bsds500/val and garg06_streaks in it.")
]
Weights = Annotated[str, typer.Option(metavar="NAME|FILE", help="Shipped weights or a .safetensors file.")]
Loops = Annotated[
    int | None, typer.Option(metavar="N", help="Default: those trained with.", show_default=False)
]
Limit = Annotated[int | None, typer.Option(metavar="N", help="Only the first images.", show_default=False)]


def register(app: typer.Typer) -> None:
    """Adds the commands to the application."""
    app.command()(train)
    app.command()(evaluate)


def need_positive(**options: int | None) -> None:
    for name, value in options.items():
        if value is not None and value < 1:
            raise UsageError(f"--{name} {value}", fix="give 1 or more")


def need_torch() -> None:
    try:
        import torch  # noqa: F401
    except ImportError as exc:
        raise EnvironmentMissing("this command needs PyTorch", fix="pip install 'cmudrn[train]'") from exc


def train(
    photos: Photos,
    streaks: Streaks,
    out: Run = Path("runs/default"),
    steps: Steps = 15_000,
    scenes: Scenes = 8,
    crop: Crop = 64,
    loops: TrainLoops = 3,
    learning_rate: Rate = 1e-3,
    bfloat16: BFloat16 = False,
    threads: Threads = None,
    seed: Seed = 0,
) -> None:
    """Train weights on clean photographs with rain and snow laid over them."""
    need_positive(threads=threads)
    need_torch()
    import torch

    from cmudrn.model import ModelConfig
    from cmudrn.train.recipe import TrainRecipe
    from cmudrn.train.session import open_run

    recipe = TrainRecipe(
        steps=steps,
        scenes=scenes,
        crop_px=crop,
        learning_rate=learning_rate,
        bfloat16=bfloat16,
        seed=seed,
        model=ModelConfig(inter_loops=loops, intra_loops=loops),
    )
    if threads:
        torch.set_num_threads(threads)
    trainer, drawn = open_run(recipe, out, photos=photos, streaks=streaks)
    typer.echo(f"{out}: {'resumed at' if trainer.step else 'begins at'} step {trainer.step} of {steps}")
    for progress in trainer.run(drawn, workers=1, report_every=50, save_every=200):
        left_min = (steps - progress.step) / progress.steps_per_s / 60
        typer.echo(
            f"step {progress.step}: loss {progress.total:.4f} (local {progress.local:.4f}, recur "
            f"{progress.recur:.4f}, global {progress.global_:.4f}), {progress.steps_per_s:.2f} steps/s, "
            f"{left_min:.0f} min left"
        )
    typer.echo(f"weights: {out / 'weights.safetensors'}")


def evaluate(
    protocol: ProtocolName,
    data: Data,
    weights: Weights = "default",
    loops: Loops = None,
    limit: Limit = None,
) -> None:
    """Score weights on an evaluation protocol: PSNR and SSIM, beside the input's own."""
    need_positive(loops=loops, limit=limit)
    need_torch()
    from cmudrn.train.protocols import Protocol, evaluate, restorer

    if protocol not in [known.value for known in Protocol]:
        raise UsageError(f"no protocol {protocol!r}", fix="choose bsd-rain or bsd-snow")
    score = evaluate(Protocol(protocol), data, restorer(weights, loops=loops), limit=limit)
    typer.echo(f"{protocol}, {score.images} images, manifest {score.manifest_sha256[:16]}")
    typer.echo(f"input     {score.input_psnr_db:6.2f} dB  SSIM {score.input_ssim:.4f}")
    typer.echo(f"restored  {score.psnr_db:6.2f} dB  SSIM {score.ssim:.4f}  gain {score.gain_db:+.2f} dB")
