"""The command that scores weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cmudrn.cli.values import need_positive, need_torch
from cmudrn.errors import UsageError

__all__ = ["evaluate", "register"]

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
    """Adds the command to the application."""
    app.command()(evaluate)


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
