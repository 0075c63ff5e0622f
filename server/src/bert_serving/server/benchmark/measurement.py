"""What calls amount to: rates, latencies, errors. Pure.

A rate is counted while all clients are at work, in as many slices of time as repeats are
measured, but not in very many; each call's rows are spread evenly over its duration. The
sum over clients of rows over duration, which comes to mind first, was nearly three times
too high in one run: clients that are not in step are each fastest while others rest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from bert_serving.client.view import HEADS, View

from .experiments import WARM_UP_REPEATS

MOST_SLICES = 20

# what only some kinds of experiment find, by name
P50_OVER_ALONE, P99_OVER_ALONE = "p50_over_alone", "p99_over_alone"
BULK, BULK_SHARE = "bulk_rows_per_s", "bulk_over_alone"
BARE_MS, OVER_BARE = "bare_p50_ms", "p50_over_bare"


@dataclass(frozen=True)
class Call:
    """One call of one client.

    Attributes:
        client, repeat: whose, and its which.
        start_s, end_s: on the machine's monotonic clock.
        rows: sentences answered: none if it failed.
        tokens: of all rows, special ones included.
        token_pairs: sum over rows of tokens squared, what attention costs.
        truncated: rows that were cut.
        error: the type of the error it ended with, and what that says.

    """

    client: int
    repeat: int
    start_s: float
    end_s: float
    rows: int = 0
    tokens: int = 0
    token_pairs: int = 0
    truncated: int = 0
    error: str | None = None
    message: str | None = None

    @property
    def is_measured(self) -> bool:
        """Whether it is more than warming up."""
        return self.repeat >= WARM_UP_REPEATS


@dataclass(frozen=True)
class Spread:
    """A middle value (median, or mean) and how far others are from it."""

    middle: float = 0.0
    least: float = 0.0
    most: float = 0.0


@dataclass(frozen=True)
class Latency:
    """Percentiles of the duration of calls, in milliseconds."""

    p50: float
    p95: float
    p99: float


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What one value of an experiment gave.

    Attributes:
        value: of the variable.
        label: which of several for the same value; empty if it is the only one.
        rows: sentences answered in all calls, warm-up included.
        truncated: those that were cut.
        calls_per_s: of all clients: median over slices of time.
        rows_per_s: sentences a second of all clients: median over slices of time.
        client_rows_per_s: of each client by itself: mean over clients.
        tokens_per_s: median over slices of time.
        latency_ms: of calls that were answered; None if none was.
        useful_gflops: of the model, nothing for padding; None if not known.
        share: of the best matrix product; None if not known.
        errors: how many calls ended with an error, by type, warm-up included.
        messages: the first message of each type.
        client_cores: how many cores the clients kept busy, on average; None if not known.
        server_cores: likewise the server.
        extra: what only its kind of experiment finds, by name.
        calls: what all this was made of.

    """

    value: int
    label: str = ""
    rows: int = 0
    truncated: int = 0
    calls_per_s: float = 0.0
    rows_per_s: Spread = Spread()
    client_rows_per_s: Spread = Spread()
    tokens_per_s: float = 0.0
    latency_ms: Latency | None = None
    useful_gflops: float | None = None
    share: float | None = None
    errors: Mapping[str, int] = field(default_factory=dict)
    messages: Mapping[str, str] = field(default_factory=dict)
    client_cores: float | None = None
    server_cores: float | None = None
    extra: Mapping[str, float] = field(default_factory=dict)
    calls: Sequence[Call] = field(default=(), repr=False)


@dataclass(frozen=True)
class Work:
    """What a token costs, and what the machine could do.

    Attributes:
        num_layers: that have to be computed.
        hidden_size: of the model.
        best_gflops: the machine's best matrix product; None if it was not measured.

    """

    num_layers: int
    hidden_size: int
    best_gflops: float | None

    def gflop(self, tokens: int, token_pairs: int) -> float:
        """Return what so many real tokens cost.

        The inner layer is taken to be four times as wide as the hidden one, as it is in
        nearly every BERT: a model does not say.
        """
        per_token = 24 * self.hidden_size**2
        per_pair = 4 * self.hidden_size
        return self.num_layers * (per_token * tokens + per_pair * token_pairs) / 1e9


class NothingMeasured(Exception):
    """No call was made but those that warm up: an open loop was too slow for its time."""


def measure(value: int, calls: Sequence[Call], work: Work | None) -> Measurement:
    """Return what the calls for a value of an experiment amount to."""
    measured = [call for call in calls if call.is_measured]
    if not measured:
        nothing = NothingMeasured("no call was made in that time: give more -seconds")
        return replace(failure(value, nothing), calls=calls)
    answered = [call for call in measured if call.error is None]
    edges = _slices(measured)
    rows_per_s = _rates(calls, edges, lambda call: call.rows)
    tokens_per_s = float(np.median(_rates(calls, edges, lambda call: call.tokens)))
    gflops = _useful_gflops(answered, tokens_per_s, work)
    best = work.best_gflops if work else None
    return Measurement(
        value=value,
        rows=sum(call.rows for call in calls),
        truncated=sum(call.truncated for call in calls),
        calls_per_s=float(np.median(_rates(calls, edges, lambda call: call.error is None))),
        rows_per_s=_spread(rows_per_s),
        client_rows_per_s=_client_rates(measured),
        tokens_per_s=tokens_per_s,
        latency_ms=_latency(answered),
        useful_gflops=gflops,
        share=gflops / best if gflops is not None and best else None,
        errors=dict(Counter(call.error for call in calls if call.error is not None)),
        messages=_first_messages(calls),
        calls=calls,
    )


def failure(value: int, error: Exception) -> Measurement:
    """Return what there is to say of a value that could not be measured at all."""
    name = type(error).__name__
    return Measurement(value=value, errors={name: 1}, messages={name: str(error)})


def rows_per_s_between(calls: Sequence[Call], start: float, end: float) -> Spread:
    """Return sentences a second from an instant to another: the median over slices of it."""
    edges = [float(edge) for edge in np.linspace(start, end, MOST_SLICES + 1)]
    return _spread(_rates(calls, edges, lambda call: call.rows))


def layers_needed(view: View, num_layers: int) -> int:
    """Return how many layers a (filled) view makes a model compute."""
    if view.pooling in HEADS:
        return num_layers
    places = [layer if layer >= 0 else num_layers + 1 + layer for layer in view.layers or (-1,)]
    return min(max(places), num_layers)


def _slices(measured: Sequence[Call]) -> list[float]:
    """Return the edges of the slices of time that rates are counted in."""
    by_client: dict[int, list[Call]] = {}
    for call in measured:
        by_client.setdefault(call.client, []).append(call)
    starts = [min(call.start_s for call in own) for own in by_client.values()]
    ends = [max(call.end_s for call in own) for own in by_client.values()]
    start, end = max(starts), min(ends)
    if end - start < max(call.end_s - call.start_s for call in measured):
        start, end = min(starts), max(ends)  # too short to say anything: the whole time, then
    repeats = max(call.repeat for call in measured) + 1 - WARM_UP_REPEATS
    num_slices = min(repeats, MOST_SLICES)
    return [float(edge) for edge in np.linspace(start, end, num_slices + 1)]


def _rates(
    calls: Sequence[Call], edges: Sequence[float], count: Callable[[Call], int]
) -> list[float]:
    """Return what is counted of calls, a second, in each slice of time."""
    starts = np.array([call.start_s for call in calls])
    durations = np.maximum(np.array([call.end_s for call in calls]) - starts, 1e-9)
    counts = np.array([count(call) for call in calls])
    done = [float((counts * np.clip((edge - starts) / durations, 0, 1)).sum()) for edge in edges]
    return [
        (after - before) / max(end - start, 1e-9)
        for before, after, start, end in zip(done, done[1:], edges, edges[1:], strict=False)
    ]


def _spread(rates: Sequence[float]) -> Spread:
    return Spread(float(np.median(rates)), float(min(rates)), float(max(rates)))


def _client_rates(measured: Sequence[Call]) -> Spread:
    rows: dict[int, int] = {}
    seconds: dict[int, float] = {}
    for call in measured:
        rows[call.client] = rows.get(call.client, 0) + call.rows
        seconds[call.client] = seconds.get(call.client, 0.0) + call.end_s - call.start_s
    rates = [rows[client] / max(seconds[client], 1e-9) for client in rows]
    return Spread(float(np.mean(rates)), min(rates), max(rates))


def _latency(answered: Sequence[Call]) -> Latency | None:
    if not answered:
        return None
    durations_ms = [(call.end_s - call.start_s) * 1000 for call in answered]
    p50, p95, p99 = np.percentile(durations_ms, [50, 95, 99])
    return Latency(float(p50), float(p95), float(p99))


def _useful_gflops(
    answered: Sequence[Call], tokens_per_s: float, work: Work | None
) -> float | None:
    tokens = sum(call.tokens for call in answered)
    if work is None or not tokens:
        return None
    pairs = sum(call.token_pairs for call in answered)
    return work.gflop(tokens, pairs) / tokens * tokens_per_s


def _first_messages(calls: Sequence[Call]) -> dict[str, str]:
    messages: dict[str, str] = {}
    for call in calls:
        if call.error is not None:
            messages.setdefault(call.error, call.message or "")
    return messages
