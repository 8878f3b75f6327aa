"""The `cmudrn` command. The one place where an error becomes a line and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from cmudrn import __version__
from cmudrn.cli import ablate, benchmark, doctor, engines, evaluate, infer, parity, synthesize, train, tune
from cmudrn.errors import INTERRUPTED, CmudrnError
from cmudrn.wording import printable

__all__ = ["app", "main"]

# Typer has its own click since 0.20 and exports only some of its errors; this is the base of them all.
CommandLineError: type[Exception] = typer.BadParameter.__mro__[2]

app = typer.Typer(
    name="cmudrn",
    help="Remove rain and snow from photographs.",
    rich_markup_mode=None,  # plain help: half the time of the boxed one, and it can be piped
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
infer.register(app)
benchmark.register(app)
engines.register(app)
parity.register(app)
tune.register(app)
doctor.register(app)
train.register(app)
ablate.register(app)
evaluate.register(app)
synthesize.register(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cmudrn {__version__}")
        raise typer.Exit


@app.callback()
def cmudrn(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and leave."
        ),
    ] = False,
) -> None:
    """Remove rain and snow from photographs."""


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line. Returns 0, 1 where a part failed, 2 for usage or environment, 130 for Ctrl-C."""
    try:
        code = app(
            list(sys.argv[1:] if args is None else args) or ["--help"],
            prog_name="cmudrn",
            standalone_mode=False,
        )
    except CmudrnError as exc:
        return _complain(exc.what, exc.fix, exc.exit_code)
    except CommandLineError as exc:
        return _complain(*_explained(exc), 2)
    except MemoryError as exc:
        return _complain(f"not enough memory: {exc}", "give smaller sizes or batches, or less at once", 1)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    if code == INTERRUPTED:
        return _complain("interrupted", "what is written is whole", INTERRUPTED)
    return code if isinstance(code, int) else 0


def _explained(error: Exception) -> tuple[str, str]:
    """What Typer says about a bad option, and where help is."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "cmudrn"
    said = error.format_message() if hasattr(error, "format_message") else str(error)
    return " ".join(said.split()), f"{command} --help"


def _complain(what: str, fix: str, exit_code: int) -> int:
    typer.echo(printable(f"cmudrn: {what}"), err=True)
    if fix:
        typer.echo(printable(f"  -> {fix}"), err=True)
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
