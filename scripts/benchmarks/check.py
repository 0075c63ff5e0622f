"""Have we become slower? Ratios measured now, against those kept in `kept.json`.

Ratios, because a machine is never as fast as it was; kept for each kind of processor, because
some ratios are not the same on all. What is below its tolerance is measured again before it
counts: others who use the machine just then can make us look slow, never fast.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bert_serving.server import exit_codes
from bert_serving.server.benchmark.machine import Machine

from .engine import engine_ratios, server_ratio
from .models import random_model
from .path import BARE, BULK, SINGLES, paths
from .rounds import medians, served

KEPT = Path(__file__).with_name("kept.json")
ANY = "any"
"""For processors that nobody has kept figures of: a floor, with room for the differences."""

DTYPES = ("float32", "bfloat16")
TRIES = 3
TOLERANCE = 0.15

Measure = Callable[[], Mapping[str, float]]


@dataclass(frozen=True)
class Figure:
    """A ratio as it was kept, the more the better; so much less of it is tolerated."""

    value: float
    tolerance: float = TOLERANCE

    @property
    def least(self) -> float:
        """What it must not fall below."""
        return self.value * (1 - self.tolerance)


def check(*, keep: bool) -> int:
    """Measure and compare, or keep what is measured; returns the exit status."""
    kind, everything = processor_kind(), read_kept(KEPT)
    found = ANY if kind not in everything else kind
    kept = {} if keep else everything.get(found, {})
    print(f"{kind}; compared with figures of: {'nothing, they are kept' if keep else found}")
    with measurements() as groups:
        measured = best_of_tries(groups, kept)
    for line in table(measured, kept):
        print(line)
    if keep:
        before = everything.get(kind, {})
        everything[kind] = {
            name: Figure(round(value, 3), before.get(name, Figure(0)).tolerance)
            for name, value in measured.items()
        }
        write_kept(KEPT, everything)
    return exit_codes.FAILED if worse(measured, kept) else exit_codes.OK


def best_of_tries(groups: Sequence[Measure], kept: Mapping[str, Figure]) -> dict[str, float]:
    """Return the best of each ratio; a group is tried again while one of its own is too low."""
    measured: dict[str, float] = {}
    for measure in groups:
        for _ in range(TRIES):
            new = measure()
            for name, value in new.items():
                measured[name] = max(value, measured.get(name, 0.0))
            if not worse({name: measured[name] for name in new}, kept):
                break
    return measured


def worse(measured: Mapping[str, float], kept: Mapping[str, Figure]) -> list[str]:
    """Return the names of those that are lower than is tolerated."""
    return [name for name, value in measured.items() if name in kept and value < kept[name].least]


def table(measured: Mapping[str, float], kept: Mapping[str, Figure]) -> list[str]:
    """Return a line a ratio, below their titles."""
    width = max(map(len, measured), default=0)
    lines = [f"{'ratio':<{width}}     kept  at least      now"]
    for name, value in measured.items():
        figure = kept.get(name)
        before = f"{figure.value:9.3f} {figure.least:9.3f}" if figure else f"{'-':>9} {'-':>9}"
        verdict = "  WORSE" if name in worse(measured, kept) else ""
        lines.append(f"{name:<{width}}{before}{value:9.3f}{verdict}")
    return lines


def read_kept(path: Path) -> dict[str, dict[str, Figure]]:
    """Return the figures of each kind of processor."""
    if not path.exists():
        return {}
    kinds: dict[str, dict[str, Any]] = json.loads(path.read_text())
    return {
        kind: {name: Figure(**figure) for name, figure in figures.items()}
        for kind, figures in kinds.items()
    }


def write_kept(path: Path, everything: Mapping[str, Mapping[str, Figure]]) -> None:
    """Write the figures of each kind of processor."""
    kinds = {
        kind: {name: vars(figure) for name, figure in figures.items()}
        for kind, figures in everything.items()
    }
    path.write_text(json.dumps(kinds, indent=2) + "\n")


def processor_kind() -> str:
    """Return what ratios depend on: a name is not enough, clouds call many things alike."""
    machine = Machine.this()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    facts = dict(line.replace("\t", "").split(":", 1) for line in lines if ":" in line)
    numbers = [f"{name}{facts[name]}" for name in ("cpu family", "model") if name in facts]
    return ", ".join([machine.processor, *numbers, f"{machine.cores} cores"])


@contextmanager
def measurements() -> Iterator[list[Measure]]:
    """Give what is to be measured: groups of ratios that come from one measurement.

    The path comes first: its processes are forked, and torch's threads do not survive that.
    """
    with tempfile.TemporaryDirectory() as folder:
        small = random_model("small", Path(folder, "small"))
        yield [
            path_ratios,
            of_server,
            *(of_engine("embedded model", None, dtype) for dtype in DTYPES),
            *(of_engine("small BERT", small, dtype) for dtype in DTYPES),
        ]


def of_engine(name: str, model_dir: Path | None, dtype: str) -> Measure:
    """Return how to measure a model in this process; None is the embedded one."""

    def measure() -> Mapping[str, float]:
        from bert_serving.server.model.device import cpu_lack  # torch, and not before the forks

        if cpu_lack(dtype) is not None:
            return {}
        ratios = engine_ratios(model_dir, dtype)
        return {f"{name}, {dtype}: {what}": value for what, value in ratios.items()}

    return measure


def of_server() -> Mapping[str, float]:
    """Return what the embedded model reaches through a server, over the engine alone."""
    with served(dtype="float32") as port:
        ratio = server_ratio(port, "float32")
    return {"embedded model, float32: server over the engine alone": ratio}


def path_ratios() -> Mapping[str, float]:
    """Return what the path around the model reaches, over a bare loop on the same sockets."""
    with paths(10_000, 60_000) as (singles, bulk):
        one, many = medians(singles), medians(bulk)
    return {
        "fake model, single sentences: over a bare loop": one[SINGLES] / one[BARE],
        "fake model, bulk: over a bare loop": many[BULK] / many[BARE],
    }
