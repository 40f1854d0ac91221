"""How a training tells where it is, and is asked to stop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fusion.errors import Cancelled


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a training is: `fraction` in [0, 1] of the whole; losses when an epoch has ended."""

    step: str
    fraction: float
    epoch: int = 0
    train_loss: float | None = None
    tuning_loss: float | None = None


Tell = Callable[[Progress], bool]


class Teller:
    """Turns steps and epochs into Progress; raises Cancelled when the caller has had enough."""

    def __init__(self, progress: Tell | None, steps: int) -> None:
        self._progress, self._steps, self._done, self._name = progress, steps, 0, ""

    def step(self, name: str) -> None:
        """A step begins."""
        self._name = name
        self.tell(Progress(name, min(1.0, self._done / self._steps)))

    def epoch(self, epoch: int, of: int, train_loss: float, tuning_loss: float | None) -> None:
        """An epoch of the step has ended."""
        fraction = (self._done + (epoch + 1) / of) / self._steps
        self.tell(Progress(self._name, min(1.0, fraction), epoch + 1, train_loss, tuning_loss))

    def begin(self, train_loss: float, tuning_loss: float | None) -> None:
        """Losses before the first epoch: of what has an optimum, and was fitted to it."""
        fraction = self._done / self._steps
        self.tell(Progress(self._name, min(1.0, fraction), 0, train_loss, tuning_loss))

    def done(self, steps: int = 1) -> None:
        """So many steps have ended."""
        self._done += steps

    def tell(self, at: Progress) -> None:
        """Raises Cancelled when the answer is False."""
        if self._progress is not None and self._progress(at) is False:
            raise Cancelled(f"stopped at: {at.step}")
