"""Contestants that take turns, so that whoever else uses the machine spoils all of them alike."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bert_serving.server.benchmark.server_process import ServerProcess

ROUNDS = 3
START_S = 300.0

Contestants = Mapping[str, Callable[[], float]]


def rate(count: int, work: Callable[[], object]) -> float:
    """Return how many of `count` things a second a piece of work does."""
    started = time.perf_counter()
    work()
    return count / (time.perf_counter() - started)


def medians(contestants: Contestants) -> dict[str, float]:
    """Return the median of each contestant's rates, taken in turns."""
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(ROUNDS):
        for name, measure in contestants.items():
            rates[name].append(measure())
    return {name: statistics.median(values) for name, values in rates.items()}


def show(title: str, rates: Mapping[str, float], reference: str, unit: str) -> None:
    """Print rates, each with its ratio to the reference's."""
    print(f"\n{title}")
    for name, value in rates.items():
        print(f"  {name:<44} {value:>10,.0f} {unit}   {value / rates[reference]:>6.2f}")


@contextmanager
def served(**options: Any) -> Iterator[int]:
    """Run a server on the CPU for the time of the block; gives its port."""
    with tempfile.TemporaryDirectory() as folder:
        server = ServerProcess(
            {"port": 0, "cpu": True, **options},
            Path(folder, "log"),
            wait_s=START_S,
            check=lambda: None,
        )
        try:
            server.start()
            yield server.port
        finally:
            server.stop(at_once=True)
