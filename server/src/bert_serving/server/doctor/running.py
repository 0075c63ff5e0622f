"""A server that runs, asked as a client asks: from the connection to a vector."""

from __future__ import annotations

import socket as sockets
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bert_serving.client import BertClient
from bert_serving.client.assembly import Encoding
from bert_serving.client.errors import ServerUnreachable, ServingError
from bert_serving.client.keys import KeyFileError

from .finding import Finding, ok, problem, warning

CONNECT_S = 3.0
CLIENT_TIMEOUT_MS = 10_000
ROUNDS = 7
PROBE = "Is this server well?"
SLOW_NETWORK_MS = 20.0
LONG_QUEUE_MS = 100.0

RUNS = "server"
LATENCY = "latency"


@dataclass(frozen=True)
class Split:
    """Where the time of one sentence went, in milliseconds; each the median of some calls."""

    total_ms: float
    round_trip_ms: float
    queue_ms: float
    tokenize_ms: float
    compute_ms: float


def look_at_server(
    ip: str, port: int, server_key: str | None = None, client_cert: str | None = None
) -> list[Finding]:
    """Check a server end to end; the first thing that fails ends it.

    Args:
        ip: where it is.
        port: its native port.
        server_key: its key, or a file that has it, if it asks for keys.
        client_cert: the file with the key to ask with.

    """
    try:
        sockets.create_connection((ip, port), CONNECT_S).close()
    except OSError as error:
        return [judge_connection(ip, port, error)]
    if server_key is not None and client_cert is None:
        advice = "give -client_cert, a client's NAME.key_secret, to look further"
        return [warning(RUNS, f"something listens on {ip}:{port}, and asks for keys", advice)]
    try:
        with BertClient(
            ip=ip,
            port=port,
            timeout=CLIENT_TIMEOUT_MS,
            connect_timeout=CONNECT_S * 1000,
            server_key=server_key,
            client_cert=client_cert,
        ) as client:
            status = client.server_status
            found = judge_status(status)
            if status.get("state") == "ready":
                found.append(judge_split(measure(client)))
            return found
    except ServingError as error:
        return [judge_answer(ip, port, error)]
    except KeyFileError as error:
        return [problem(RUNS, str(error), "make keys with bert-serving-keygen")]


def measure(client: BertClient) -> Split:
    """Return where the time of a sentence goes."""
    client.encode(PROBE)  # what the first call costs is not the rule
    round_trips, calls = [], []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        _ = client.server_status
        asked = time.perf_counter()
        encoding = client.encode_detailed(PROBE)
        calls.append((1000 * (time.perf_counter() - asked), encoding))
        round_trips.append(1000 * (asked - started))
    return split(round_trips, calls)


def split(round_trips: Sequence[float], calls: Sequence[tuple[float, Encoding]]) -> Split:
    """Return the medians of what was measured, in milliseconds."""
    return Split(
        total_ms=statistics.median(total for total, _ in calls),
        round_trip_ms=statistics.median(round_trips),
        queue_ms=statistics.median(call.queue_ms for _, call in calls),
        tokenize_ms=statistics.median(call.tokenize_ms for _, call in calls),
        compute_ms=statistics.median(call.compute_ms for _, call in calls),
    )


def judge_connection(ip: str, port: int, error: OSError) -> Finding:
    """Return why there is no connection."""
    where = f"{ip}:{port}"
    if isinstance(error, ConnectionRefusedError):
        advice = "start one with bert-serving-start, or give the -port that its ready line says"
        return problem(RUNS, f"nothing listens on {where}", advice)
    if isinstance(error, sockets.gaierror):
        return problem(RUNS, f"{ip} is no address: {error.strerror}", "see how it is spelled")
    if isinstance(error, TimeoutError):
        advice = "see the firewall, and that the server's -host is an address others can reach"
        return problem(RUNS, f"{where} does not answer a connection", advice)
    return problem(RUNS, f"{where}: {error.strerror or error}", "see the network")


def judge_answer(ip: str, port: int, error: ServingError) -> Finding:
    """Return what is wrong with what listens."""
    where = f"{ip}:{port}"
    if isinstance(error, ServerUnreachable):
        advice = (
            "if it is a bert-serving server, see its log: its broker hangs, or asks for keys; "
            "if it is something else, give the right -port"
        )
        return problem(RUNS, f"something listens on {where}, but says nothing", advice)
    return problem(RUNS, f"{where}: {type(error).__name__}: {error}", "see the server's log")


def judge_status(status: Mapping[str, Any]) -> list[Finding]:
    """Return what a server says of itself."""
    workers = status.get("workers", [])
    ready = sum(worker.get("state") == "ready" for worker in workers)
    name = status.get("model", {}).get("name", "no model yet")
    seen = f"{status.get('server_version')}, {status.get('state')}: {name}, {ready} worker(s) ready"
    wanted = status.get("num_worker") or 1
    if status.get("state") != "ready":
        return [problem(RUNS, seen, "wait until it is ready; its log says what it waits for")]
    if ready < wanted:
        advice = "its log says why workers end, and when the next begin"
        return [warning(RUNS, f"{seen} of {wanted}", advice)]
    counts = status.get("statistic", {})
    failed = {**counts.get("num_refused", {}), **counts.get("num_failed", {})}
    if lost := {code: number for code, number in failed.items() if number}:
        told = ", ".join(f"{number} {code}" for code, number in lost.items())
        return [ok(RUNS, f"{seen}; since its start it has answered with errors: {told}")]
    return [ok(RUNS, seen)]


def judge_split(times: Split) -> Finding:
    """Return where the time of a sentence goes, and whether that is where it should go."""
    seen = (
        f"a sentence {times.total_ms:.1f} ms: round trip {times.round_trip_ms:.1f}, "
        f"queue {times.queue_ms:.1f}, tokenize {times.tokenize_ms:.1f}, "
        f"compute {times.compute_ms:.1f}"
    )
    if times.queue_ms > max(LONG_QUEUE_MS, times.compute_ms):
        return warning(
            LATENCY, seen, "it is busy with other clients: more workers, or fewer of these"
        )
    if times.round_trip_ms > max(SLOW_NETWORK_MS, times.compute_ms):
        advice = "most of it is the way there and back: send many sentences at a time"
        return warning(LATENCY, seen, advice)
    return ok(LATENCY, seen)
