"""The model alone, as a worker loads it: what it costs without a server around it.

A process of its own, started by `bare_model`, which must not load torch. It reads a worker's
config, says that it is ready or why it never will be, and then answers each line: how long
to encode which text takes, or how many tokens it computes in a second. It ends with its
standard input.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from typing import Any

from . import exit_codes
from .model.calibration import typical_lengths
from .model.loading import load_replica
from .model.replica import EncodeRequest, ModelLoadError, Replica
from .roles import WorkerConfig, from_json

WARM_UPS = 3


def main() -> int:
    """Answer until standard input ends; returns the exit status."""
    config = from_json(WorkerConfig, sys.stdin.readline())
    if config.cores:
        os.sched_setaffinity(0, config.cores)
    try:
        replica = load_replica(config.replica)
    except ModelLoadError as error:
        _say({"error": str(error)})
        return exit_codes.BOOT_FAILED
    _say({"ready": True})
    for line in sys.stdin:
        _say(_answer(replica, config, json.loads(line)))
    return exit_codes.OK


def _answer(replica: Replica, config: WorkerConfig, asked: dict[str, Any]) -> dict[str, object]:
    if "text" in asked:
        return {"p50_ms": _p50_ms(replica, config, asked["text"], asked["seconds"])}
    return {"tokens_per_s": _tokens_per_s(replica, config, asked["seconds"])}


def _p50_ms(replica: Replica, config: WorkerConfig, text: str, seconds: float) -> float:
    """Return how long a text takes that has been tokenized."""
    rows = replica.tokenize([text], is_tokenized=False, max_length=None)
    requests = [EncodeRequest(rows, {"embedding": config.default_view})]
    for _ in range(WARM_UPS):
        replica.encode(requests)
    durations: list[float] = []
    end = time.perf_counter() + seconds
    while not durations or time.perf_counter() < end:
        started = time.perf_counter()
        replica.encode(requests)
        durations.append(time.perf_counter() - started)
    return statistics.median(durations) * 1000


def _tokens_per_s(replica: Replica, config: WorkerConfig, seconds: float) -> float:
    """Return the rate on batches of sentences as long as they usually are, tokenized each time."""
    lengths = typical_lengths(replica.max_batch_tokens, replica.info.max_length)
    texts = [" ".join(["a"] * max(length - 2, 1)) for length in lengths]
    tokens = 0
    started = time.perf_counter()
    while not tokens or time.perf_counter() < started + seconds:
        rows = replica.tokenize(texts, is_tokenized=False, max_length=None)
        requests = [EncodeRequest(rows, {"embedding": config.default_view})]
        # interrupted for nothing, but interrupted, as large requests are
        replica.encode(requests, between_layers=lambda: None)
        tokens += int(rows.lengths.sum())
    return tokens / (time.perf_counter() - started)


def _say(answer: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
