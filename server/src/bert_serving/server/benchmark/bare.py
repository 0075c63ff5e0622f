"""The model alone, as a worker loads it: what a sentence costs without a server around it.

A process of its own, started by `overhead`, which must not load torch. It reads a worker's
config, says that it is ready or why it never will be, and then answers each line: how long
to encode which text takes, in milliseconds. It ends with its standard input.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time

from bert_serving.server import exit_codes
from bert_serving.server.model.loading import load_replica
from bert_serving.server.model.replica import EncodeRequest, ModelLoadError, Replica
from bert_serving.server.roles import WorkerConfig, from_json

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
        asked = json.loads(line)
        _say({"p50_ms": _p50_ms(replica, config, asked["text"], asked["seconds"])})
    return exit_codes.OK


def _p50_ms(replica: Replica, config: WorkerConfig, text: str, seconds: float) -> float:
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


def _say(answer: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
