"""The command `cmudrn parity-check`: it parses, calls and prints."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cmudrn.cli.options import StoreFolder, Threads, Weights
from cmudrn.cli.values import (
    need_positive,
    need_torch,
    need_writable,
    one_of,
    parse_depths,
    parse_sizes,
)
from cmudrn.errors import UsageError

if TYPE_CHECKING:
    from cmudrn.deploy.parity.candidates import Selection
    from cmudrn.deploy.parity.images import ParityImages
    from cmudrn.deploy.parity.measure import Checked, OnImage, ParityJob

__all__ = ["parity_check", "register"]

Keys = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY]...", help="Engines, or patterns such as 't3-*'; all of the store, where none is given."
    ),
]
Loops = Annotated[
    str | None, typer.Option(metavar="N|A-B|A,B", help="Only these loop counts.", show_default=False)
]
Sizes = Annotated[
    list[str],
    typer.Option("--size", metavar="SIDE|HxW", help="Only these sizes, height first; repeatable."),
]
PrecisionNames = Annotated[
    str | None,
    typer.Option("--precision", metavar="fp16|bf16|fp32,...", help="Only these.", show_default=False),
]
PixelName = Annotated[
    str | None, typer.Option("--pixel", metavar="uint8|float32", help="Only this one.", show_default=False)
]
OutputName = Annotated[
    str | None,
    typer.Option("--output", metavar="fused|rain|snow", help="Only this one.", show_default=False),
]
BackendNames = Annotated[
    list[str],
    typer.Option(
        "--backend",
        metavar="native|onnx|torch|openvino",
        help="Check these instead, which need no engine; repeatable. The options above then say what they "
        "compute [default: 3 loops, 256x256, fp32, uint8, fused].",
    ),
]
Images = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Compare on these instead of the package's.", show_default=False),
]
Truth = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Clean images of the same names: then also what PSNR and SSIM to them change by.",
        show_default=False,
    ),
]
MinPsnr = Annotated[float, typer.Option("--min-psnr", metavar="DB", help="Of the worst image.")]
MaxDifference = Annotated[
    float | None,
    typer.Option(
        "--max-difference",
        metavar="LEVELS",
        help="Of the worst value, of 255 grey levels [default: 3, in fp32 1].",
        show_default=False,
    ),
]
MaxTruthChange = Annotated[
    float, typer.Option("--max-truth-change", metavar="DB", help="Of the mean PSNR to --truth.")
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="N|PCI|cpu",
        help="Of engines a GPU's number or PCI bus id; with --backend onnx or torch a number or cpu; with "
        "native or openvino cpu alone.",
        show_default=False,
    ),
]
Json = Annotated[
    str | None,
    typer.Option(
        "--json",
        metavar="FILE|-",
        help="Write the figures there; - is the standard output.",
        show_default=False,
    ),
]
Report = Annotated[
    Path | None,
    typer.Option(
        "--report",
        metavar="FILE.html",
        help="Write a page with the worst places enlarged.",
        show_default=False,
    ),
]


def register(app: typer.Typer) -> None:
    """Adds the command to the application."""
    app.command("parity-check")(parity_check)


def parity_check(
    keys: Keys = None,
    loops: Loops = None,
    size: Sizes = [],  # noqa: B006 (Typer copies it)
    precision: PrecisionNames = None,
    pixel: PixelName = None,
    output: OutputName = None,
    backend: BackendNames = [],  # noqa: B006
    weights: Weights = "default",
    images: Images = None,
    truth: Truth = None,
    min_psnr: MinPsnr = 50.0,
    max_difference: MaxDifference = None,
    max_truth_change: MaxTruthChange = 0.01,
    device: Device = None,
    threads: Threads = None,
    report: Report = None,
    json_to: Json = None,
    store: StoreFolder = None,
) -> int:
    """Measure how far engines are from PyTorch in float32, and certify them.

    `infer` uses engines that have passed. Exit code 1 where one is below the limits, 2 where one that was
    named, or none at all, can be run here.
    """
    from cmudrn.checkpoint import read_checkpoint
    from cmudrn.deploy.parity.candidates import find_candidates
    from cmudrn.deploy.parity.measure import FLOAT32_LIMITS, ParityJob, check_parity, exit_code
    from cmudrn.engines.certificate import ParityLimits
    from cmudrn.engines.store import EngineStore

    need_positive(threads=threads)
    need_torch()
    need_targets(report, json_to)
    told = {} if max_difference is None else {"difference": max_difference}
    limits = ParityLimits(psnr_db=min_psnr, truth_db=max_truth_change, **told)
    job = ParityJob(
        images=find_images(images, truth),
        checkpoint=read_checkpoint(weights),
        weights=weights,
        limits=limits,
        float32_limits=limits if told else replace(limits, difference=FLOAT32_LIMITS.difference),
        threads=threads,
    )
    wanted = parse_selection(keys or [], loops, size, precision, pixel, output, backend)
    candidates, errors = find_candidates(EngineStore.default(store), wanted, job, device=device)
    results: list[Checked] = []
    try:
        with progress(len(candidates) * len(job.images)) as on_image:
            for checked in check_parity(job, candidates, on_image=on_image):
                results.append(checked)
    finally:  # Ctrl-C, too: what is certified is certified
        print_results(results, to_stderr=json_to == "-")
        if results:
            write_reports(job, results, report, json_to)
    for error in errors:
        typer.echo(f"cmudrn: {error}", err=True)
    return 1 if errors else exit_code(results, is_named=wanted.names)


def need_targets(report: Path | None, json_to: str | None) -> None:
    """Raises UsageError where a report could not be written."""
    if report is not None:
        need_writable("--report", report)
    if json_to not in (None, "-"):
        need_writable("--json", Path(str(json_to)))


def find_images(folder: Path | None, truth: Path | None) -> ParityImages:
    """Those of a folder, else the package's."""
    from cmudrn.deploy.parity.images import given_images, shipped_images

    if folder is not None:
        return given_images(folder, truth)
    if truth is not None:
        raise UsageError(f"--truth {truth}: of which images?", fix="give --images DIR")
    return shipped_images()


def parse_selection(
    keys: Sequence[str],
    loops: str | None,
    sizes: Sequence[str],
    precisions: str | None,
    pixel: str | None,
    output: str | None,
    backends: Sequence[str],
) -> Selection:
    """Raises UsageError."""
    from cmudrn.deploy.job import BackendName
    from cmudrn.deploy.parity.candidates import Selection
    from cmudrn.engines.spec import Output, Pixel, Precision

    names = [name for given in backends for name in given.split(",")]
    told = [] if precisions is None else precisions.split(",")
    return Selection(
        keys=tuple(keys),
        loops=None if loops is None else parse_depths(loops),
        sizes=tuple(parse_sizes(sizes)) or None,
        precisions=tuple(one_of(Precision, "--precision", name) for name in told) or None,
        pixel=None if pixel is None else one_of(Pixel, "--pixel", pixel),
        output=None if output is None else one_of(Output, "--output", output),
        backends=tuple(one_of(BackendName, "--backend", name) for name in names),
    )


@contextmanager
def progress(images: int) -> Iterator[OnImage]:
    """A bar on the standard error where that is a terminal: what is measured, and how far all is."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("starting", total=images)
        yield lambda name: bar.update(task, description=name, advance=1)


def print_results(results: Sequence[Checked], *, to_stderr: bool) -> None:
    """What was measured as a table, then a line for each that isn't passed."""
    from rich.console import Console
    from rich.table import Table

    from cmudrn.deploy.parity.report import HEADINGS, reason, table_row

    measured = [one for one in results if one.certificate]
    if measured:
        table = Table(box=None, pad_edge=False)
        table.add_column("engine", no_wrap=True)
        for name in HEADINGS:
            table.add_column(name, justify="right", no_wrap=True)
        for one in measured:
            table.add_row(one.name, *table_row(one))
        # Whole lines, which a narrow terminal wraps: a key is there to be copied.
        Console(highlight=False, width=200, file=sys.stderr if to_stderr else sys.stdout).print(table)
    for one in results:
        if why := reason(one):
            typer.echo(f"{one.verdict.value}: {one.name}: {why}", err=True)


def write_reports(
    job: ParityJob, results: Sequence[Checked], report: Path | None, json_to: str | None
) -> None:
    """Files are written whole or not at all."""
    from cmudrn.deploy.parity.report import html_page, to_json
    from cmudrn.files import replacing

    def write(path: Path, text: str) -> None:
        try:
            with replacing(path) as file:
                file.write(text.encode())
        except OSError as exc:
            raise UsageError(
                f"{path}: cannot be written: {exc.strerror}",
                fix="the certificates are kept; name another file",
            ) from exc

    if report is not None:
        write(report, html_page(job, results))
        typer.echo(f"report: {report}", err=True)
    if json_to is None:
        return
    text = json.dumps(to_json(job, results), indent=2) + "\n"
    if json_to == "-":
        typer.echo(text, nl=False)
    else:
        write(Path(json_to), text)
