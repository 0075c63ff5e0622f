"""What a comparison gave: rates of contenders, and ours over theirs. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from .machine import Machine, MatrixProduct
from .measurement import Spread

LEAST_COSINE = {"float32": 0.9999}
LEAST_COSINE_16_BIT = 0.99
"""Below it a contender computes something else than ours, and its speed says nothing."""


@dataclass(kw_only=True)
class Entry:
    """One contender at one workload.

    Attributes:
        name, version: what it is.
        dtype: what it computes in.
        layers: how many it computes.
        is_ours: whether it is ours.
        settings: its best ones, in words.
        cosine: the least one of its vectors to ours in the most exact type, out of the same
            layer; None if it was not checked.
        rows: of a measurement.
        seconds: of each measurement, a round each.
        excluded: why nothing is compared with it; empty if it is.

    """

    name: str
    version: str
    dtype: str
    layers: int
    is_ours: bool
    settings: str = ""
    cosine: float | None = None
    rows: int = 0
    seconds: list[float] = field(default_factory=list)
    excluded: str = ""

    @property
    def rows_per_s(self) -> Spread:
        """Sentences a second: median, least and most over the rounds."""
        rates = self.rates
        return Spread(median(rates), min(rates), max(rates)) if rates else Spread()

    @property
    def rates(self) -> list[float]:
        """Sentences a second, in each round."""
        return [self.rows / seconds for seconds in self.seconds]

    def label(self, num_layers: int) -> str:
        """Return what it is and computes, in words."""
        return f"{self.name}, {self.dtype}, {self.layers} of {num_layers} layers"


@dataclass(frozen=True)
class Ratio:
    """How many times as fast one of ours is as the best of some peers, over rounds."""

    over: Entry
    ratio: Spread


@dataclass(kw_only=True)
class WorkloadResult:
    """What all contenders gave at one workload.

    Attributes:
        name: the workload's.
        tokens: of a row, on average, special ones included.
        layer_gflop: what a layer costs on a row, on average: real tokens only.
        entries: one a contender.

    """

    name: str
    tokens: float
    layer_gflop: float
    entries: list[Entry] = field(default_factory=list)

    @property
    def ours(self) -> list[Entry]:
        """Ours that were measured, but for those whose speed says nothing."""
        return [e for e in self.entries if e.is_ours and e.seconds and not e.excluded]

    def tokens_per_s(self, entry: Entry) -> float:
        """Return the real tokens a second of a contender."""
        return entry.rows_per_s.middle * self.tokens

    def useful_gflops(self, entry: Entry) -> float:
        """Return the rate of what its layers cost on real tokens."""
        return entry.rows_per_s.middle * self.layer_gflop * entry.layers

    def against_best(
        self, ours: Entry, *, dtype: str | None = None, equal_layers: bool = False
    ) -> Ratio | None:
        """Return one of ours over the best peer; None if there is none.

        Args:
            ours: which of ours.
            dtype: only peers that compute in it.
            equal_layers: only peers that compute as many layers.

        """
        peers = [
            entry
            for entry in self.entries
            if not (entry.is_ours or entry.excluded)
            and entry.seconds
            and dtype in (None, entry.dtype)
            and (not equal_layers or entry.layers == ours.layers)
        ]
        if not peers:
            return None
        best = max(peers, key=lambda entry: entry.rows_per_s.middle)
        # round by round: what slows the machine down for a while slows both
        ratios = [mine / theirs for mine, theirs in zip(ours.rates, best.rates, strict=False)]
        return Ratio(best, Spread(median(ratios), min(ratios), max(ratios)))


@dataclass(kw_only=True)
class Comparison:
    """What a comparison of one kind gave so far.

    Attributes:
        kind: which.
        date: when it was begun.
        machine: what it ran on.
        versions: of what we run.
        model: the name of the model's directory, and its sizes.
        num_layers: of the model.
        command: what was typed.
        environment: the settings of our servers that stood in the environment.
        rounds, seconds: measurements of each contender, and about how long each took.
        products: the best matrix products of the run, by type.
        workloads: those begun.
        left_out: peers that were not there, or failed, and why.
        ended: why it is not complete; empty if it is.
        picture: the name of its file; None if there is none.

    """

    kind: str
    date: str
    machine: Machine
    versions: Mapping[str, str]
    model: str
    num_layers: int
    command: str
    environment: Mapping[str, str]
    rounds: int
    seconds: float
    products: dict[str, MatrixProduct] = field(default_factory=dict)
    workloads: list[WorkloadResult] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    ended: str = "not finished"
    picture: str | None = None

    def share(self, workload: WorkloadResult, entry: Entry) -> float | None:
        """Return a contender's useful FLOPs over the best matrix product in its type."""
        product = self.products.get(entry.dtype)
        if product is None or not product.gflops:
            return None
        return workload.useful_gflops(entry) / product.gflops

    def keep_best(self, products: Iterable[MatrixProduct]) -> None:
        """Take matrix products in: the best of the run is nearest to the machine's limit."""
        for product in products:
            known = self.products.get(product.dtype, product)
            self.products[product.dtype] = max(known, product, key=lambda p: p.gflops or 0.0)

    def to_dict(self) -> dict[str, Any]:
        """Return everything, and what follows from it, as JSON has it."""
        everything = asdict(self)
        for made, workload in zip(everything["workloads"], self.workloads, strict=True):
            for own, entry in zip(made["entries"], workload.entries, strict=True):
                own["rows_per_s"] = asdict(entry.rows_per_s)
                own["tokens_per_s"] = workload.tokens_per_s(entry)
                own["share"] = self.share(workload, entry)
            made["ratios"] = [
                {"ours": ours.label(self.num_layers), **_ratios(workload, ours, self.num_layers)}
                for ours in workload.ours
            ]
        return everything


AGAINST: Mapping[str, Mapping[str, Any]] = {
    "best float32 peer": {"dtype": "float32"},
    "best peer of any type": {},
    "best float32 peer, equal layers": {"dtype": "float32", "equal_layers": True},
    "best peer of any type, equal layers": {"equal_layers": True},
}
"""What ours are compared with, and how `against_best` is asked for it."""


def least_cosine(vectors: Sequence[Sequence[float]], reference: Sequence[Sequence[float]]) -> float:
    """Return the least cosine of a row to the reference's row; -1 if the shapes differ."""
    if [len(row) for row in vectors] != [len(row) for row in reference]:
        return -1.0
    return min(_cosine(one, other) for one, other in zip(vectors, reference, strict=True))


def why_excluded(entry: Entry, *, reference: str, max_tokens: int | None, longest: int) -> str:
    """Return why a contender's speed says nothing; empty if it does.

    Args:
        entry: of the contender, its cosine found.
        reference: the type of the vectors that it was held against; the less exact one of the
            two types says how near they can be.
        max_tokens: it cuts rows to so many; None if it cuts none.
        longest: tokens of the workload's longest row.

    """
    if max_tokens is not None and longest > max_tokens:
        return f"cuts rows to {max_tokens} tokens: these have up to {longest}"
    dtypes = (entry.dtype, reference)
    least = min(LEAST_COSINE.get(dtype, LEAST_COSINE_16_BIT) for dtype in dtypes)
    if entry.cosine is not None and not entry.cosine >= least:  # so that NaN is wrong too
        return f"other vectors than ours: cosine {entry.cosine:.4f}, expected {least}"
    return ""


def _cosine(one: Sequence[float], other: Sequence[float]) -> float:
    dot = sum(a * b for a, b in zip(one, other, strict=True))
    norms = (sum(a * a for a in one) * sum(b * b for b in other)) ** 0.5
    return dot / norms if norms else 0.0


def _ratios(workload: WorkloadResult, ours: Entry, num_layers: int) -> dict[str, Any]:
    found = {name: workload.against_best(ours, **asked) for name, asked in AGAINST.items()}
    return {
        name: {"over": ratio.over.label(num_layers), **asdict(ratio.ratio)} if ratio else None
        for name, ratio in found.items()
    }
