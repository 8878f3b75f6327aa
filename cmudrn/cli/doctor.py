"""The command `cmudrn doctor`: it parses, calls and prints."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from cmudrn.cli.options import StoreFolder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from cmudrn.deploy.doctor.findings import Finding

__all__ = ["doctor", "register"]

AsJson = Annotated[bool, typer.Option("--json", help="Print all that is known, as JSON.")]
COLOURS = {"ok": "green", "missing": "yellow", "mismatched": "bold red"}


def register(app: typer.Typer) -> None:
    """Adds the command to the application."""
    app.command("doctor")(doctor)


def doctor(store: StoreFolder = None, as_json: AsJson = False) -> int:
    """Check the installation: what is there, what fits, and what to do.

    Exit code 0 where `infer` works and nothing is mismatched, whatever optional parts are missing; else 1.
    """
    from rich.console import Console

    from cmudrn.deploy.doctor.checkup import examine
    from cmudrn.engines.store import EngineStore

    diagnosis = examine(EngineStore.default(store))
    console = Console(highlight=False, markup=False)
    if as_json:
        typer.echo(json.dumps(diagnosis.to_json(), indent=2))
    elif console.is_terminal:
        print_table(console, diagnosis.findings)
    else:
        print_lines(diagnosis.findings)
    if not as_json:
        typer.echo(
            "\n`cmudrn infer` works here." if diagnosis.works else "\n`cmudrn infer` does not work here."
        )
    return diagnosis.exit_code


def print_table(console: Console, findings: Sequence[Finding]) -> None:
    """Coloured, wrapped to the terminal's width."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for one in findings:
        told = Text(one.found)
        if one.fix:
            told.append(f"\n-> {one.fix}", style="dim")
        table.add_row(Text(one.state.value, style=COLOURS[one.state.value]), one.part, told)
    console.print(table)


def print_lines(findings: Sequence[Finding]) -> None:
    """A line a part, and one for what mends it: to be searched, and copied from."""
    states = max(len(one.state.value) for one in findings)
    parts = max(len(one.part) for one in findings)
    for one in findings:
        typer.echo(f"{one.state.value:{states}}  {one.part:{parts}}  {one.found}")
        if one.fix:
            typer.echo(f"{'':{states}}  {'':{parts}}  -> {one.fix}")
