"""How the cores of a machine are shared out: how many workers, with how many threads each.

One worker on all cores has the lowest latency and holds the model once; several spend less
time waiting for their threads, where there are many cores. It decides, and measures nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

FEWEST_THREADS = 4
"""Of a worker on a machine with more cores: below, a single sentence takes long."""

GOOD_GAIN, GOOD_GAIN_OF_FEW = 1.1, 1.2
"""What twice the workers must gain: they take twice the memory, and a sentence takes longer. More,
if each has fewer threads than `FEWEST_THREADS`: then it takes twice the time."""


@dataclass(frozen=True)
class Layout:
    """Equal workers that share all cores.

    Attributes:
        num_worker: how many.
        num_threads: of each.

    """

    num_worker: int
    num_threads: int

    def __str__(self) -> str:
        """Return it as in a log: 2 x 8 is two workers with eight threads each."""
        return f"{self.num_worker} x {self.num_threads}"


@dataclass(frozen=True)
class LayoutCalibration:
    """What was measured.

    Attributes:
        num_worker: the number of workers chosen.
        tokens_per_s: the rate of all workers together, by their number.

    """

    num_worker: int
    tokens_per_s: dict[int, float]

    def __str__(self) -> str:
        """Return a line for a log."""
        rates = ", ".join(f"{number}: {rate:.0f}" for number, rate in self.tokens_per_s.items())
        return f"num_worker={self.num_worker} (tokens/s by workers: {rates})"


def layouts(num_cores: int) -> list[Layout]:
    """Return what is worth measuring on so many cores, the fewest workers first."""
    fewest = 1 if num_cores <= FEWEST_THREADS else FEWEST_THREADS
    found = [Layout(1, num_cores)]
    while num_cores // (found[-1].num_worker * 2) >= fewest:
        num_worker = found[-1].num_worker * 2
        found.append(Layout(num_worker, num_cores // num_worker))
    return found


def calibrate_layout(
    candidates: Sequence[Layout], measure: Callable[[Sequence[Layout]], Sequence[float]]
) -> LayoutCalibration | None:
    """Return the layout to use: twice the workers as long as that gains enough.

    Args:
        candidates: the fewest workers first, two or more.
        measure: returns the tokens a second of all workers of a layout together, for two
            layouts, measured side by side; only of the first where the machine cannot hold so
            many, and of none where the model cannot be loaded.

    Returns:
        None where the first could not be measured.

    """
    measured: dict[int, float] = {}
    best = candidates[0].num_worker
    for fewer, more in pairwise(candidates):
        rates = measure([fewer, more])
        measured.update(zip((fewer.num_worker, more.num_worker), rates, strict=False))
        enough = GOOD_GAIN if more.num_threads >= FEWEST_THREADS else GOOD_GAIN_OF_FEW
        if len(rates) < 2 or rates[1] < enough * rates[0]:
            break
        best = more.num_worker
    return LayoutCalibration(best, measured) if measured else None
