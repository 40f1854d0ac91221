"""Whether memory stays flat under load: sampled while calls go on, judged by the second half of the run.

In the first half caches fill and the allocator finds its size; what rises after that would go on rising.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from types import TracebackType

GOAL_MIB = 10  # the most that all web processes together may rise by in the second half
EVERY_S, FEWEST = 60.0, 10  # a sample each minute; of a short run, ten


class Watch:
    """Samples `measure` from the beginning of the `with` to its end.

    samples  MiB, the first at the beginning and the last at the end
    """

    def __init__(self, measure: Callable[[], int], *, seconds: float) -> None:
        self.samples: list[int] = []
        self._measure, self._every_s = measure, min(EVERY_S, seconds / FEWEST)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        self.samples.append(self._measure())
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        if kind is None:
            self.samples.append(self._measure())

    def _run(self) -> None:
        while not self._over.wait(self._every_s):
            try:
                self.samples.append(self._measure())
            except OSError:
                continue  # a process was just being replaced


def rise(samples: Sequence[int]) -> int:
    """MiB by which the second half went above where it began; 0 where it never did."""
    half = samples[len(samples) // 2 :]
    return max(half) - half[0] if half else 0


def in_words(samples: Sequence[int]) -> str:
    """The samples, and whether they are flat."""
    risen = rise(samples)
    said = "yes" if risen <= GOAL_MIB else "**no**"
    return (
        f"Resident memory of the web processes, sampled evenly: {', '.join(map(str, samples))} MiB; in the "
        f"second half it rose by {risen} MiB. Flat (≤ {GOAL_MIB} MiB): {said}."
    )
