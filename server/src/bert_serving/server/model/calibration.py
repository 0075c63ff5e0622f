"""How many tokens to compute at a time: measured when a worker starts, never guessed.

Few tokens leave the device idle between small operations; on a CPU, many push the
activations out of its caches. It knows only a function to time, and no torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

CPU_BUDGETS = (128, 256, 512, 1024, 2048)
"""Not more: a CPU gains nothing by it, and large batches make others wait."""

CUDA_BUDGETS = (1024, 2048, 4096, 8192, 16_384, 32_768, 65_536)
"""A GPU needs many tokens to be busy, and takes little time for them; not measured yet."""

# the smallest budget that reaches this share of the best rate is the one
_GOOD_SHARE = 0.97
_LIMIT_S = 8.0

# What a batch costs beside the model: read, tokenized, answered, and threads woken again. On
# two cores 256 tokens of the embedded model in bfloat16 took 16 ms alone and 21 in a server.
_HANDOVER_S = 0.004

# repeat until this share of the limit is used: others may be using the machine too
_ENOUGH = 0.25


@dataclass(frozen=True)
class Calibration:
    """What was measured.

    Attributes:
        max_batch_tokens: the budget chosen.
        tokens_per_s: the rate at each budget tried, with what a batch costs beside the model.
        share: of the machine's best matrix product that the model's own reach at that budget;
            None where it is not known what the model multiplies.

    """

    max_batch_tokens: int
    tokens_per_s: dict[int, float]
    share: float | None = None

    def __str__(self) -> str:
        """Return a line for a log."""
        rates = ", ".join(f"{budget}: {rate:.0f}" for budget, rate in self.tokens_per_s.items())
        share = f", {self.share:.2f} of the machine's limit" if self.share is not None else ""
        return f"max_batch_tokens={self.max_batch_tokens}{share} (tokens/s by budget: {rates})"


def calibrate(
    encode: Callable[[Sequence[int]], object],
    *,
    max_length: int,
    budgets: Sequence[int] = CPU_BUDGETS,
    limit_s: float = _LIMIT_S,
    handover_s: float = _HANDOVER_S,
    clock: Callable[[], float] = time.perf_counter,
) -> Calibration:
    """Return the smallest budget that comes near the best rate.

    Goes round all budgets, smallest first, and keeps the best rate of each, so that a
    moment in which others use the machine spoils no single budget. A budget too large for
    the time left is not tried: a slow model gets a small one, which keeps its latency low.

    Args:
        encode: computes rows of so many tokens each, at one time, and has their values when
            it returns: a GPU's launches alone would be timed otherwise.
        max_length: most tokens a row may have.
        budgets: token budgets to try, ascending.
        limit_s: seconds that it may take, about; a fast model takes a quarter of it.
        handover_s: seconds that each batch costs beside `encode`.
        clock: seconds.

    """
    rates: dict[int, float] = {}
    rows = {budget: typical_lengths(budget, max_length) for budget in budgets}
    started = clock()
    encode(rows[budgets[0]])  # what is done once is not part of a rate
    while not rates or clock() < started + _ENOUGH * limit_s:
        for budget, lengths in rows.items():
            before = clock()
            tokens = sum(lengths)
            if rates and before + tokens / max(rates.values()) > started + limit_s:
                break
            encode(lengths)
            rates[budget] = max(rates.get(budget, 0.0), tokens / (clock() - before + handover_s))
    good = _GOOD_SHARE * max(rates.values())
    return Calibration(min(budget for budget, rate in rates.items() if rate >= good), rates)


def waited_s() -> float:
    """Return how long threads of this process were ready to run while others had the cores.

    Seconds of all threads together, by the kernel's accounts (`/proc/<pid>/schedstat`); 0 where
    it keeps none.
    """
    total_ns = 0
    for schedstat in Path("/proc/self/task").glob("*/schedstat"):
        try:
            total_ns += int(schedstat.read_text().split()[1])
        except (OSError, IndexError, ValueError):  # a thread that has ended, or no accounts
            continue
    return total_ns / 1e9


def typical_lengths(tokens: int, max_length: int) -> list[int]:
    """Return row lengths with at most `tokens` tokens in all: sentences, lognormal around 16."""
    draws = np.random.default_rng(0).lognormal(np.log(16), 0.6, tokens)
    lengths = np.clip(draws.astype(int), 4, min(128, max_length))
    fitting = int(np.searchsorted(np.cumsum(lengths), tokens, side="right"))
    return [int(length) for length in lengths[: max(fitting, 1)]]
