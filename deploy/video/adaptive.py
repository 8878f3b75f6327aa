"""How many loops a frame gets, by the time that the frames before it took. Pure: no clock, no pixels."""

from __future__ import annotations

from collections.abc import Sequence

from cmudrn.deploy.benchmark.arithmetic import flops

__all__ = ["LoopController"]

FITS = 0.85  # of the budget: what a higher count may be expected to take, so that it stays
PATIENCE = 3  # blocks in a row that must have room before more loops are tried
LONGEST_PATIENCE = 48  # blocks; each try that failed at once doubles the wait for the next


class LoopController:
    """Moves between loop counts, so that a frame takes at most `budget_s` seconds.

    counts: those there are. It begins with the highest. block: frames that are judged together, as many as
    come back at once. Down at once, and as far as needed; up by one, when the next count is expected to
    fit for some blocks on end. A step up that has to be taken back makes it wait longer before the next.
    """

    def __init__(self, counts: Sequence[int], budget_s: float, *, block: int = 4) -> None:
        if not counts or not budget_s > 0 or block < 1:
            raise ValueError("a controller needs loop counts, a budget and blocks of frames")
        self._counts = sorted(set(counts))
        self._budget_s, self._block = budget_s, block
        self._at = len(self._counts) - 1
        self._some_s: list[float] = []  # of the block that is being collected
        self._roomy = 0  # blocks in a row with room for the next count
        self._patience = PATIENCE
        self._on_trial = False  # the last move was up, and no block has been judged since

    @property
    def loops(self) -> int:
        """For the next frame."""
        return self._counts[self._at]

    def observe(self, loops: int, seconds: float) -> None:
        """A frame took so long with that many loops; one begun before the last move says nothing."""
        if len(self._counts) == 1 or loops != self.loops:
            return
        self._some_s.append(seconds)
        total_s, count = sum(self._some_s), len(self._some_s)
        # A block that is over its budget before its end is lost already: a camera does not wait.
        if count == self._block or total_s > self._block * self._budget_s:
            mean_s, self._some_s = total_s / count, []
            self._judge(mean_s)

    def _judge(self, mean_s: float) -> None:
        if mean_s > self._budget_s:
            self._patience = min(2 * self._patience, LONGEST_PATIENCE) if self._on_trial else self._patience
            fitting = [at for at in range(self._at) if self._expected_s(mean_s, at) <= self._budget_s]
            self._move(fitting[-1] if fitting else 0)
            self._on_trial = False
            return
        if self._on_trial:  # it fits: the machine has room again
            self._on_trial, self._patience = False, PATIENCE
        above = self._at + 1
        has_room = above < len(self._counts) and self._expected_s(mean_s, above) <= FITS * self._budget_s
        self._roomy = self._roomy + 1 if has_room else 0
        if self._roomy >= self._patience:
            self._move(above)
            self._on_trial = True

    def _expected_s(self, mean_s: float, at: int) -> float:
        """What a frame would take with another count, by what it takes with this one."""
        return mean_s * flops(self._counts[at], 1, 1) / flops(self.loops, 1, 1)

    def _move(self, at: int) -> None:
        self._roomy, self._at = 0, at
