"""What clients of one sentence wait, alone and beside one that encodes in bulk.

Twice: as clients that ask again when they are answered, and as an open loop at half the
rate that these reached. The second one is what many users are: nobody's question waits
for another one's answer, and a stall costs everybody who asks in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from .experiments import Load, Step, bulk_beside
from .load import LoadFailed
from .measurement import (
    BULK,
    BULK_SHARE,
    P50_OVER_ALONE,
    P99_OVER_ALONE,
    Measurement,
    rows_per_s_between,
)
from .under_test import ServerUnderTest, with_cores

OPEN_SHARE = 0.5
"""Of what the same clients reach when they ask again at once: below it nothing piles up."""

LEAD_S = 1.0
"""The bulk client is at work for so long before the others begin."""


def measure_mixed(server: ServerUnderTest, step: Step) -> Iterator[Measurement]:
    """Yield what the clients of a step found, alone and beside a bulk client."""
    bulk_alone = server.measure(step.value, bulk_beside(step.load)).rows_per_s.middle
    closed = server.measure(step.value, step.load)
    yield replace(closed, label="closed, alone", extra={BULK: bulk_alone})
    beside = _beside(server, step.value, step.load)
    yield replace(beside, label="closed, beside bulk", extra=_ratios(beside, closed, bulk_alone))
    if not closed.calls_per_s:  # every call failed: there is no rate to halve
        return
    load = replace(step.load, rate=OPEN_SHARE * closed.calls_per_s)
    opened = server.measure(step.value, load)
    yield replace(opened, label="open, alone", extra={BULK: bulk_alone})
    beside = _beside(server, step.value, load)
    yield replace(beside, label="open, beside bulk", extra=_ratios(beside, opened, bulk_alone))


def _beside(server: ServerUnderTest, value: int, load: Load) -> Measurement:
    """Return what clients find beside a bulk client, and its rate meanwhile."""
    assert load.seconds is not None
    bulk = replace(bulk_beside(load), seconds=load.seconds + LEAD_S)
    loaded = server.load(replace(load, delay_s=LEAD_S, beside=bulk))
    if failed := [call for call in loaded.beside if call.error is not None]:
        raise LoadFailed(f"the bulk client: {failed[0].error}: {failed[0].message}")
    start = min(call.start_s for call in loaded.calls)
    end = min(max(call.end_s for call in calls) for calls in (loaded.calls, loaded.beside))
    rate = rows_per_s_between(loaded.beside, start, end).middle
    return replace(with_cores(loaded, value, None), extra={BULK: rate})


def _ratios(beside: Measurement, alone: Measurement, bulk_alone: float) -> dict[str, float]:
    ratios = dict(beside.extra)
    if bulk_alone:
        ratios[BULK_SHARE] = ratios[BULK] / bulk_alone
    if alone.latency_ms is not None and beside.latency_ms is not None:
        ratios[P50_OVER_ALONE] = beside.latency_ms.p50 / alone.latency_ms.p50
        ratios[P99_OVER_ALONE] = beside.latency_ms.p99 / alone.latency_ms.p99
    return ratios
