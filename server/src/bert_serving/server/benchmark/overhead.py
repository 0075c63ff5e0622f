"""What the way through the server adds to the model: one client, one sentence, one at a time.

The model alone and the server take turns on the same sentence, so that whoever else uses
the machine spoils both alike.
"""

from __future__ import annotations

import contextlib
import json
import math
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from bert_serving.server import exit_codes
from bert_serving.server.config import ServerConfig, option_fields
from bert_serving.server.control import Addresses
from bert_serving.server.devices import place_workers
from bert_serving.server.roles import to_json, worker_config

from .experiments import Step
from .load import LoadFailed
from .measurement import BARE_MS, OVER_BARE, Measurement
from .under_test import ServerUnderTest
from .words import sentences

ROUNDS = 3
LOAD_S, ANSWER_S = 300.0, 60.0
POLL_S = 0.1


class BareModel:
    """The model of a server in a process of its own.

    Args:
        process: of `bare`.
        check: called often; what it raises ends whatever is waited for.

    """

    def __init__(self, process: subprocess.Popen[bytes], check: Callable[[], None]) -> None:
        self._process = process
        self._check = check

    def p50_ms(self, text: str, seconds: float) -> float:
        """Return what encoding a text takes, tried for so long."""
        answer = self.ask(json.dumps({"text": text, "seconds": seconds}), seconds + ANSWER_S)
        return float(answer["p50_ms"])

    def ask(self, line: str, timeout_s: float) -> dict[str, Any]:
        """Return the answer to a line; LoadFailed if none comes."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it ended: reading says so
            self._process.stdin.write(f"{line}\n".encode())
            self._process.stdin.flush()
        deadline = time.monotonic() + timeout_s
        while not select.select([self._process.stdout], [], [], POLL_S)[0]:
            self._check()
            if time.monotonic() >= deadline:
                raise LoadFailed(f"the model alone gave no answer within {timeout_s:g} s")
        answer = self._process.stdout.readline()
        if not answer:
            raise LoadFailed(f"the model alone {exit_codes.describe(self._process.wait())}")
        said: dict[str, Any] = json.loads(answer)
        if "error" in said:
            raise LoadFailed(f"the model alone cannot be loaded: {said['error']}")
        return said


@contextmanager
def bare_model(status: Mapping[str, Any], check: Callable[[], None]) -> Iterator[BareModel]:
    """Have the model that a server with this status serves, as its first worker has it."""
    process = subprocess.Popen(  # noqa: S603  # our own module
        [sys.executable, "-m", f"{__package__}.bare"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for us, and we end it
    )
    try:
        model = BareModel(process, check)
        model.ask(_worker_config(status), LOAD_S)
        yield model
    finally:
        process.kill()
        process.communicate()


def measure_overhead(server: ServerUnderTest, step: Step) -> Measurement:
    """Return what a sentence takes through the server, with its ratio to the model alone."""
    load, words = step.load, server.sentences
    assert load.seconds is not None
    seconds = load.seconds / ROUNDS
    (text,) = sentences(words.words, 1, length=load.sentence_words, longest=words.longest, seed=0)
    bare_ms, rounds = [], []
    with bare_model(server.status, server.check) as model:
        for _ in range(ROUNDS):
            bare_ms.append(model.p50_ms(text, seconds))
            rounds.append(server.measure(step.value, replace(load, seconds=seconds)))
    middle = sorted(rounds, key=_p50_ms)[ROUNDS // 2]
    bare = statistics.median(bare_ms)
    return replace(middle, extra={BARE_MS: bare, OVER_BARE: _p50_ms(middle) / bare})


def _p50_ms(measurement: Measurement) -> float:
    latency = measurement.latency_ms
    return latency.p50 if latency is not None else math.inf


def _worker_config(status: Mapping[str, Any]) -> str:
    """Return what the first worker of a server was told, with the budget that it found."""
    settings = {entry.name: status[entry.name] for entry in option_fields() if entry.name in status}
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()
    }
    values["max_batch_tokens"] = status["workers"][0]["max_batch_tokens"]  # none is measured again
    config = ServerConfig(**values)
    nowhere = Addresses(supervisor="", backend="")
    return to_json(worker_config(config, nowhere, 0, place_workers(config)[0]))
