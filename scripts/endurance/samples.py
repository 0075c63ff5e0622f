"""What a long run measures, and what of it must not have grown: pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, median, quantiles

TOLERANCE = 0.05


@dataclass(frozen=True)
class Sample:
    """The state of things at one instant.

    Attributes:
        at: seconds from the start.
        kib: memory of each process, by role.
        latencies_s: of the calls that have ended since the last sample.

    """

    at: float
    kib: dict[str, int]
    latencies_s: Iterable[float]


@dataclass(frozen=True)
class Figure:
    """One thing that is measured, at the beginning and at the end."""

    name: str
    first: float
    last: float
    unit: str

    @property
    def has_grown(self) -> bool:
        """Whether it is larger in the end by more than is tolerated."""
        return self.last > self.first * (1 + TOLERANCE)

    def line(self) -> str:
        """Return it as a line of the report."""
        change = self.last / self.first - 1
        verdict = "  GROWN" if self.has_grown else ""
        values = f"{self.first:>10.2f}{self.last:>10.2f} {self.unit:4}{change:>+8.1%}"
        return f"{self.name:20}{values}{verdict}"


def between(samples: Sequence[Sample], start: float, end: float) -> Sequence[Sample]:
    """Return the samples of a span of time."""
    return [sample for sample in samples if start <= sample.at < end]


def latencies_ms(samples: Sequence[Sample]) -> tuple[float, float]:
    """Return the median and the 99th percentile of the calls of a span."""
    all_ms = [1000 * second for sample in samples for second in sample.latencies_s]
    return median(all_ms), quantiles(all_ms, n=100)[98]


def figures(first: Sequence[Sample], last: Sequence[Sample]) -> Iterator[Figure]:
    """Yield what there is to compare between two spans of time."""
    for role in first[0].kib:
        spans = [fmean(sample.kib[role] for sample in span) / 1024 for span in (first, last)]
        yield Figure(role, *spans, "MiB")
    (first_median, first_p99), (last_median, last_p99) = latencies_ms(first), latencies_ms(last)
    yield Figure("median latency", first_median, last_median, "ms")
    yield Figure("p99 latency", first_p99, last_p99, "ms")


def table(samples: Sequence[Sample], rows: int) -> Iterator[str]:
    """Yield the lines of a table of a run: so many spans, one after the other."""
    roles = list(samples[0].kib)
    yield "".join(f"{name:>12}" for name in ("minute", *roles, "median ms", "p99 ms"))
    length = (samples[-1].at - samples[0].at) / rows
    for row in range(rows):
        start = samples[0].at + row * length
        span = between(samples, start, start + length)
        memory = [fmean(sample.kib[role] for sample in span) / 1024 for role in roles]
        cells = [(start + length) / 60, *memory, *latencies_ms(span)]
        yield "".join(f"{cell:>12.2f}" for cell in cells)
