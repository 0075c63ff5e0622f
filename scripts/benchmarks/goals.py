"""What the project wants to reach, measured beside it: what needs no other system, and no GPU.

Through the server and the client, as users have it. Each row says what it must at least
reach, and what it should.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from bert_serving.server import exit_codes
from bert_serving.server.benchmark.experiments import Load, Step
from bert_serving.server.benchmark.machine import Machine
from bert_serving.server.benchmark.measurement import OVER_BARE, P99_OVER_ALONE
from bert_serving.server.benchmark.mixed import measure_mixed
from bert_serving.server.benchmark.overhead import measure_overhead
from bert_serving.server.benchmark.under_test import ServerUnderTest
from bert_serving.server.model.device import cpu_lack

from .models import random_model
from .path import BULK, SINGLES, paths
from .rounds import START_S, medians


@dataclass(frozen=True)
class Goal:
    """One row.

    Attributes:
        name: what is measured.
        measured, goal, must: the figure, what it should be, and what it must be.
        less_is_more: it should be at most so much.

    """

    name: str
    measured: float
    goal: float
    must: float
    less_is_more: bool = False

    @property
    def verdict(self) -> str:
        """Whether it is reached."""
        sign = -1 if self.less_is_more else 1
        if sign * self.measured >= sign * self.goal:
            return "reached"
        return "enough" if sign * self.measured >= sign * self.must else "MISSED"

    def __str__(self) -> str:
        """Return it as a line of a table."""
        figures = (self.measured, self.goal, self.must)
        cells = "".join(
            f"{value:11,.2f}" if value < 100 else f"{value:11,.0f}" for value in figures
        )
        return f"{self.name:<72}{cells}  {self.verdict}"


@dataclass(frozen=True)
class NotMeasured:
    """A row that this machine cannot measure.

    Attributes:
        name: what is not measured.
        cause: why.

    """

    name: str
    cause: str

    def __str__(self) -> str:
        """Return it as a line of a table."""
        return f"{self.name:<72}  not measured: {self.cause}"


Row: TypeAlias = Goal | NotMeasured


def show_goals(groups: Iterable[str]) -> int:
    """Print each row of these groups as it is measured; returns the exit status."""
    print(f"{Machine.this()}\n{'':<72}{'measured':>11}{'goal':>11}{'must':>11}")
    missed = False
    for group in groups:
        for row in _GROUPS[group]():
            print(row, flush=True)
            missed |= isinstance(row, Goal) and row.verdict == "MISSED"
    return exit_codes.FAILED if missed else exit_codes.OK


def bert_base() -> Iterator[Row]:
    """Measure a BERT-base, with random weights, in bulk; and its worker's memory."""
    with tempfile.TemporaryDirectory() as folder, server_under_test() as server:
        model = random_model("bert-base", Path(folder, "bert-base"))
        bulk = Load(num_client=1, client_batch_size=256, num_repeat=8)
        for dtype, goal, must in (("float32", 0.92, 0.84), ("bfloat16", 0.88, 0.76)):
            name = f"BERT-base, {dtype}, bulk: share of the best matrix product"
            if (lack := cpu_lack(dtype)) is not None:
                yield NotMeasured(name, lack)
                continue
            server.serve(options(model_dir=model, dtype=dtype))
            yield Goal(name, share(server, bulk), goal, must)
            if dtype == "float32":
                weights = model / "model.safetensors"
                ratio = pss_bytes(server.status["workers"][0]["pid"]) / weights.stat().st_size
                name = "BERT-base, float32: memory of the worker over its weights"
                yield Goal(name, ratio, 1.4, 1.8, less_is_more=True)
        name = "BERT-base, int8, bulk: over bfloat16"
        if (lack := cpu_lack("bfloat16") or cpu_lack("int8")) is not None:
            yield NotMeasured(name, lack)
            return
        in_bfloat16 = server.measure(0, bulk).rows_per_s.middle
        server.serve(options(model_dir=model, dtype="int8"))
        in_int8 = server.measure(0, bulk).rows_per_s.middle
        yield Goal(name, in_int8 / in_bfloat16, 1.6, 1.3)


def embedded() -> Iterator[Row]:
    """Measure the embedded model: in bulk, online, mixed, alone, and how soon it is there."""
    with server_under_test() as server:
        bulk = Load(num_client=1, client_batch_size=2048, num_repeat=6)
        for dtype, goal, must in (("bfloat16", 0.75, 0.60), ("float32", 0.85, 0.74)):
            name = f"embedded model, {dtype}, bulk: share of the best matrix product"
            if (lack := cpu_lack(dtype)) is not None:
                yield NotMeasured(name, lack)
                continue
            server.serve(options(dtype=dtype))
            yield Goal(name, share(server, bulk), goal, must)
        bulk_rate = server.measure(0, bulk).rows_per_s.middle
        online = server.measure(32, Load(num_client=32, client_batch_size=1, seconds=10))
        name = "embedded model, 32 clients of one sentence: over its own bulk"
        yield Goal(name, online.rows_per_s.middle / bulk_rate, 0.9, 0.75)
        yield from waits(server)
        server.stop(at_once=False)
        started = time.monotonic()
        server.serve(options(dtype="float32"))  # the second time: calibration is known
        name = "embedded model: seconds from start to ready"
        yield Goal(name, time.monotonic() - started, 3, 6, less_is_more=True)


def waits(server: ServerUnderTest) -> Iterator[Goal]:
    """Measure what clients of one sentence wait, beside nobody and beside a bulk client."""
    for words in (8, 16):
        load = Load(num_client=1, client_batch_size=1, seconds=6, sentence_words=words)
        found = measure_overhead(server, Step(words, {}, load))
        name = f"embedded model, one client, {words} words: p50 over the bare forward"
        yield Goal(name, found.extra[OVER_BARE], 1.2, 1.5, less_is_more=True)
    load = Load(num_client=4, client_batch_size=1, seconds=10)
    for found in measure_mixed(server, Step(4, {}, load)):
        if P99_OVER_ALONE in found.extra:
            name = f"embedded model, 4 clients, {found.label}: p99 over alone"
            yield Goal(name, found.extra[P99_OVER_ALONE], 1.5, 2, less_is_more=True)


def fake() -> Iterator[Goal]:
    """Measure the path around the model."""
    with paths(20_000, 100_000) as (singles, bulk):
        one, many = medians(singles)[SINGLES], medians(bulk)[BULK]
    yield Goal("fake model: single sentences a second", one, 9_000, 6_000)
    yield Goal("fake model: bulk rows of 384 floats a second", many, 450_000, 350_000)


_GROUPS: Mapping[str, Callable[[], Iterator[Row]]] = {
    "bert-base": bert_base,
    "embedded": embedded,
    "fake": fake,
}
GROUPS: Sequence[str] = tuple(_GROUPS)


@contextmanager
def server_under_test() -> Iterator[ServerUnderTest]:
    """Give a server that is served with what it is told to; it ends with the block."""
    with tempfile.TemporaryDirectory() as folder:
        server = ServerUnderTest(Path(folder, "log"), wait_s=START_S, words=(), check=lambda: None)
        try:
            yield server
        finally:
            server.stop(at_once=True)


def options(**given: Any) -> dict[str, Any]:
    """Return a server's options: those given, any free port, and the CPU."""
    return {"port": 0, "cpu": True, **given}


def share(server: ServerUnderTest, load: Load) -> float:
    """Return the share of the best matrix product, measured before and after the load."""
    before = server.matrix_product()
    found = server.measure(0, load, before)
    after = server.matrix_product()  # the best of both
    if after is None or after.gflops is None or found.useful_gflops is None:
        return math.nan
    return found.useful_gflops / after.gflops


def pss_bytes(pid: int) -> int:
    """Return the memory that is a process's own share."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
