"""Commands of the stage `engines`: they parse, call and print."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from cmudrn.cli.evaluate import OutputChoice
from cmudrn.cli.options import StoreFolder, Weights
from cmudrn.cli.values import need_onnx, need_positive, one_of, parse_depths, parse_sizes

if TYPE_CHECKING:
    from cmudrn.engines.compile import Built, OnStep
    from cmudrn.engines.manifest import Manifest
    from cmudrn.engines.store import EngineStore

__all__ = ["build_engine", "register"]

Loops = Annotated[str, typer.Option(metavar="N|A-B|A,B", help="Loop counts: an engine for each.")]
Sizes = Annotated[
    list[str],
    typer.Option("--size", metavar="SIDE|HxW", help="Pixels, height first; repeatable: an engine for each."),
]
Batch = Annotated[int, typer.Option(metavar="N", help="Images that an engine takes at once.")]
PrecisionName = Annotated[
    str, typer.Option("--precision", metavar="fp16|bf16|fp32", help="Of the convolutions.")
]
PixelName = Annotated[str, typer.Option("--pixel", metavar="uint8|float32", help="Of images at the edges.")]
LayoutNames = Annotated[
    str,
    typer.Option(
        "--layout",
        metavar="NAME,...",
        help="How the graph is laid out: separate, grouped or dense; y-once, first-from-y.",
    ),
]
FlavorName = Annotated[
    str,
    typer.Option(
        "--flavor",
        metavar="auto|tensorrt|rtx",
        help="TensorRT, for the GPU that is here, or TensorRT-RTX, which needs none to build.",
    ),
]
BuildDevice = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="N|PCI",
        help="TensorRT: the GPU to build on and for, by number or PCI bus id [default: the first].",
        show_default=False,
    ),
]
Targets = Annotated[
    list[str],
    typer.Option(
        "--target",
        metavar="SM",
        help="TensorRT-RTX: sm75, sm80, sm86, sm89, sm120 or sm121; repeatable: an engine for each. "
        "Without: one for all GPUs from sm80 on.",
        show_default=False,
    ),
]
FrontendName = Annotated[
    str,
    typer.Option("--frontend", metavar="onnx|torch-tensorrt", help="What hands the network to the compiler."),
]
Level = Annotated[
    int | None,
    typer.Option(
        "--optimization-level",
        metavar="0..5",
        help="Quick to thorough [default: the compiler's own].",
        show_default=False,
    ),
]
Workspace = Annotated[
    int | None,
    typer.Option(
        metavar="MB", help="GPU memory for intermediate results [default: all].", show_default=False
    ),
]
Rebuild = Annotated[bool, typer.Option("--rebuild", help="Build also what the store holds already.")]
Key = Annotated[str, typer.Argument(metavar="KEY", help="An engine's name, as `engines list` has it.")]
Keys = Annotated[list[str], typer.Argument(metavar="KEY...", help="Engines, as `engines list` has them.")]
AnyKeys = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY]...", help="Engines; all, where none is given.")
]
OtherVersions = Annotated[
    bool,
    typer.Option("--other-versions", help="Also engines of TensorRT versions that are not installed here."),
]

store_app = typer.Typer(help="Look after the engines that build-engine has built.", rich_markup_mode=None)


def register(app: typer.Typer) -> None:
    """Adds the commands to the application."""
    app.command("build-engine")(build_engine)
    store_app.command("list")(list_engines)
    store_app.command("show")(show)
    store_app.command("verify")(verify)
    store_app.command("remove")(remove)
    store_app.command("prune")(prune)
    app.add_typer(store_app, name="engines")


def build_engine(
    loops: Loops = "3",
    size: Sizes = ["500"],  # noqa: B006 (Typer copies it)
    batch: Batch = 1,
    precision: PrecisionName = "fp16",
    pixel: PixelName = "uint8",
    output: OutputChoice = "fused",
    layout: LayoutNames = "separate",
    weights: Weights = "default",
    flavor: FlavorName = "auto",
    device: BuildDevice = None,
    target: Targets = [],  # noqa: B006
    frontend: FrontendName = "onnx",
    optimization_level: Level = None,
    workspace: Workspace = None,
    rebuild: Rebuild = False,
    store: StoreFolder = None,
) -> int:
    """Compile TensorRT engines: one for each loop count and image size."""
    from cmudrn.checkpoint import read_checkpoint
    from cmudrn.engines import EngineSpec, Output, Pixel, Precision
    from cmudrn.engines.compile import CompileJob, compile_engines
    from cmudrn.engines.flavors import Flavor, open_library
    from cmudrn.engines.layout import Layout
    from cmudrn.engines.manifest import Frontend
    from cmudrn.engines.store import EngineStore

    need_positive(batch=batch)
    need_onnx()
    specs = tuple(
        EngineSpec(
            loops=depth,
            height=height,
            width=width,
            batch=batch,
            precision=one_of(Precision, "--precision", precision),
            pixel=one_of(Pixel, "--pixel", pixel),
            output=one_of(Output, "--output", output),
        )
        for depth in parse_depths(loops)
        for height, width in parse_sizes(size)
    )
    job = CompileJob(
        specs=specs,
        targets=tuple(dict.fromkeys(target)) or (None,),
        layout=Layout.parse(layout),
        frontend=one_of(Frontend, "--frontend", frontend),
        device=device,
        optimization_level=optimization_level,
        workspace_mb=workspace,
        rebuild=rebuild,
    )
    library = open_library(None if flavor == "auto" else one_of(Flavor, "--flavor", flavor))
    place = EngineStore.default(store)
    built: list[Built] = []
    try:
        with build_progress(len(job)) as on_step:
            for one in compile_engines(job, read_checkpoint(weights), library, place, on_step=on_step):
                built.append(one)
    finally:  # Ctrl-C, too: what is built is built
        print_built(built, place)
    return 1 if any(one.error for one in built) else 0


def list_engines(store: StoreFolder = None) -> int:
    """Show what the store holds."""
    from cmudrn.engines.store import EngineStore

    place = EngineStore.default(store)
    whole, broken = place.manifests()
    if not whole and not broken:
        typer.echo(f"{place.folder}: no engines; `cmudrn build-engine` makes them")
    if whole:
        print_table(whole, [manifest.built_at for manifest in whole], "built")
    for name, error in broken:
        typer.echo(f"cmudrn: {name}: {error}", err=True)
    return 1 if broken else 0


def show(key: Key, store: StoreFolder = None) -> None:
    """Print all that is known of an engine, as JSON."""
    from cmudrn.engines.store import EngineStore

    typer.echo(EngineStore.default(store).manifest(key).to_json().decode(), nl=False)


def verify(keys: AnyKeys = None, store: StoreFolder = None) -> int:
    """Check plans: whole, unchanged, nobody else's."""
    from cmudrn.engines.store import EngineStore
    from cmudrn.errors import EngineError

    place = EngineStore.default(store)
    failed = 0
    for key in keys or all_names(place):
        try:
            place.verify(key)
            typer.echo(f"{key}: whole")
        except EngineError as exc:
            failed += 1
            typer.echo(f"cmudrn: {exc.what}\n  -> {exc.fix}", err=True)
    return 1 if failed else 0


def remove(keys: Keys, store: StoreFolder = None) -> None:
    """Delete engines."""
    from cmudrn.engines.store import EngineStore

    place = EngineStore.default(store)
    for key in keys:
        place.remove(key)
        typer.echo(f"removed {key}")


def prune(other_versions: OtherVersions = False, store: StoreFolder = None) -> None:
    """Delete what no run can use.

    Leftovers of interrupted builds, and engines whose manifest cannot be read.
    """
    from cmudrn.engines.flavors import installed_libraries
    from cmudrn.engines.store import EngineStore

    place = EngineStore.default(store)
    removed = place.prune(keep=installed_libraries() if other_versions else None)
    for name in removed:
        typer.echo(f"removed {name}")
    if not removed:
        typer.echo(f"{place.folder}: nothing to remove")


def all_names(store: EngineStore) -> list[str]:
    whole, broken = store.manifests()
    return [manifest.key for manifest in whole] + [name for name, _ in broken]


@contextmanager
def build_progress(engines: int) -> Iterator[OnStep]:
    """A bar on the standard error where that is a terminal: what is being built, and how far it is."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    from cmudrn.engines.callbacks import BuildStep

    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[phase]}")
    begun: list[str] = []
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("reading weights", total=None, phase="")

        def on_step(key: str, step: BuildStep) -> None:
            if key not in begun:
                begun.append(key)
            count = f"{len(begun)} of {engines}: " if engines > 1 else ""
            bar.update(task, description=count + key, completed=step.done, total=step.of, phase=step.phase)

        yield on_step


def print_built(built: Sequence[Built], store: EngineStore) -> None:
    """The engines that there are now as a table, then what failed."""
    there = [(one.manifest, "" if one.fresh else "already there") for one in built if one.manifest]
    if there:
        print_table([manifest for manifest, _ in there], [note for _, note in there], "")
        typer.echo(f"in {store.folder}")
    for one in built:
        if one.error:
            typer.echo(f"cmudrn: {one.key}: {one.error.what}\n  -> {one.error.fix}", err=True)


def print_table(manifests: Sequence[Manifest], notes: Sequence[str], heading: str) -> None:
    """A row an engine."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("engine", no_wrap=True)
    for name in ("seconds", "MB", "layers", "share"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("parity", no_wrap=True)
    table.add_column(heading, no_wrap=True)
    for manifest, note in zip(manifests, notes, strict=True):
        layers, precision = manifest.layers, manifest.spec.precision.value
        table.add_row(
            manifest.key,
            f"{manifest.seconds:.2f}",
            f"{manifest.plan_bytes / 1e6:.1f}",
            str(layers.computing),
            f"{layers.share:.0%} {precision}",
            "unchecked" if manifest.parity is None else "passed" if manifest.parity.passed else "below",
            note,
        )
    # Whole lines, which a narrow terminal wraps: a key is there to be copied.
    Console(highlight=False, width=200, file=sys.stdout).print(table)
