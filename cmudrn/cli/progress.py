"""How a training run looks: one moving line on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from cmudrn.train.loop import Progress as StepProgress
    from cmudrn.train.monitor import Validation

__all__ = ["TrainingProgress"]


class TrainingProgress(AbstractContextManager["TrainingProgress"]):
    """Tells of a run on standard output.

    begun, steps: where it stands and where it ends. shown: False for all processes but the first.
    """

    def __init__(self, begun: int, steps: int, *, shown: bool = True) -> None:
        self.console = Console(quiet=not shown, highlight=False, soft_wrap=True)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=not (shown and self.console.is_terminal),
        )
        self.begun, self.steps = begun, steps
        self.task = self.bar.add_task("starting", total=steps, completed=begun)

    def __enter__(self) -> TrainingProgress:
        self.bar.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.bar.stop()

    def begin(self, out: Path, kernels: str, data: Sequence[str]) -> None:
        """Says where the run stands, whose convolutions it uses, and line by line what it is trained on."""
        for line in data:
            self.console.print(line)
        how = "resumed at" if self.begun else "begins at"
        self.console.print(f"{out}: {how} step {self.begun} of {self.steps}, kernels: {kernels}")

    def tell(self, news: StepProgress | Validation) -> None:
        """A report of the last steps, or a score."""
        from cmudrn.train.monitor import Validation

        if isinstance(news, Validation):
            self.console.print(f"validation, T = {news.loops}: {news.psnr_db:.2f} dB, SSIM {news.ssim:.4f}")
            return
        line = (
            f"loss {news.total:.4f} (local {news.local:.4f}, recur {news.recur:.4f}, "
            f"global {news.global_:.4f}), {news.steps_per_s:.2f} steps/s"
        )
        self.bar.update(self.task, completed=news.step, description=line)
        if self.bar.disable:
            left_min = (self.steps - news.step) / news.steps_per_s / 60
            self.console.print(f"step {news.step}: {line}, {left_min:.0f} min left")

    def end(self, out: Path) -> None:
        """Says what was made."""
        self.console.print(f"weights: {out / 'weights.safetensors'}")
