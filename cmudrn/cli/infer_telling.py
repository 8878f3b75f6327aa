"""What `cmudrn infer` tells: lines and a bar on standard error, and the report."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cmudrn.errors import CmudrnError, UsageError
from cmudrn.files import replacing, write_all
from cmudrn.wording import printable

if TYPE_CHECKING:
    from rich.progress import Progress

    from cmudrn.deploy.job import InferJob
    from cmudrn.deploy.report import ItemResult, JobReport

__all__ = ["Silent", "check_report_path", "note", "print_end", "progress", "write_report"]


def note(line: str) -> None:
    """To the standard error, as all that is said: the standard output is the report's, or the frames'."""
    typer.echo(printable(line), err=True)


def print_end(report: JobReport) -> None:
    """What became of the job."""
    report.end()
    for what, lines in (("Done anew:", report.redone_lines()), ("Not restored:", report.failure_lines())):
        if lines:
            note(what)
        for line in lines:
            note(f"  {line}")
    if report.gone:
        note(report.gone_line())
    note(report.summary())
    for line in report.loop_lines():
        note(line)


def check_report_path(report_to: str | None) -> None:
    """A report that could not be written is found out before the first image, not after the last."""
    if report_to in (None, "-"):
        return
    from cmudrn.deploy.video.names import is_clip
    from cmudrn.formats import ImageFormat

    path = Path(str(report_to))
    if is_clip(path) or ImageFormat.of(path.suffix):  # it would take the place of a photograph
        raise UsageError(f"--report {path}: named like a picture", fix="name a .json file, or give -")
    if (
        path.is_dir()
        or not path.parent.is_dir()
        or not os.access(path if path.exists() else path.parent, os.W_OK)
    ):
        raise UsageError(
            f"--report {path}: cannot be written", fix="name a file in a folder that is there, or -"
        )


def write_report(report: JobReport, job: InferJob, results: Iterable[ItemResult], report_to: str) -> None:
    """Results are written one by one: a hundred thousand of them need not fit into memory.

    Raises CmudrnError where it cannot be written.
    """
    from cmudrn.checkpoint import read_checkpoint
    from cmudrn.deploy.report import report_lines

    sha256 = read_checkpoint(job.weights).sha256
    settings = {
        **{"loops": job.loops, "output": job.output.value},
        **{"weights": job.weights, "weights_sha256": sha256},
    }
    items = ({**result.to_json(), "weights_sha256": sha256} for result in results)
    lines = report_lines({"settings": settings, **report.to_json()}, items)
    if report_to == "-":
        sys.stdout.writelines(lines)
        return
    path = Path(report_to)
    try:
        if path.exists() and not path.is_file():  # a pipe
            with path.open("w", encoding="utf-8") as file:
                file.writelines(lines)
            return
        with replacing(path) as raw:
            for line in lines:
                write_all(raw, line.encode())
    except OSError as exc:
        raise CmudrnError(
            f"--report {path}: {exc.strerror or exc}", fix="see to the disk; --resume writes it again"
        ) from exc


class Silent:
    """No terminal: nothing is shown."""

    def item(self) -> None:
        """One more is done."""

    def frame(self, clip: Path, done: int, of: int) -> None:
        """Another frame of a clip is done."""


class Bar(Silent):
    """One line with images/s, or a clip's frames, and the time left."""

    def __init__(self, bar: Progress, total: int, report: JobReport) -> None:
        self._bar, self._report = bar, report
        self._task = bar.add_task("- images/s", total=total)

    def item(self) -> None:
        rate = f"{self._report.images_per_s:.1f} images/s"
        self._bar.update(self._task, advance=1, description=rate)

    def frame(self, clip: Path, done: int, of: int) -> None:
        about = f" of {of:,}" if of else ""
        self._bar.update(self._task, description=f"{printable(clip.name)}: frame {done:,}{about}")


@contextmanager
def progress(total: int, report: JobReport) -> Iterator[Silent]:
    """What to tell of each image and frame; a bar on a terminal only."""
    if not sys.stderr.isatty():
        yield Silent()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield Bar(bar, total, report)
