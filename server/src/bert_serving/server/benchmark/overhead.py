"""What the way through the server adds to the model: one client, one sentence, one at a time.

The model alone and the server take turns on the same sentence, so that whoever else uses
the machine spoils both alike.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from bert_serving.server.bare_model import BareModel, BareModelError, bare_model
from bert_serving.server.config import ServerConfig, option_fields
from bert_serving.server.control import NOWHERE
from bert_serving.server.devices import place_workers
from bert_serving.server.roles import WorkerConfig, worker_config

from .experiments import Step
from .load import LoadFailed
from .measurement import BARE_MS, OVER_BARE, Measurement
from .under_test import ServerUnderTest
from .words import sentences

ROUNDS = 3


@contextmanager
def _model_of(server: ServerUnderTest) -> Iterator[BareModel]:
    """Have the model that a server serves, as its first worker has it."""
    try:
        with bare_model(_worker_config(server.status), server.check) as model:
            model.wait_loaded()
            yield model
    except BareModelError as error:
        raise LoadFailed(str(error)) from None


def measure_overhead(server: ServerUnderTest, step: Step) -> Measurement:
    """Return what a sentence takes through the server, with its ratio to the model alone."""
    load, words = step.load, server.sentences
    assert load.seconds is not None
    seconds = load.seconds / ROUNDS
    (text,) = sentences(words.words, 1, length=load.sentence_words, longest=words.longest, seed=0)
    bare_ms, rounds = [], []
    with _model_of(server) as model:
        for _ in range(ROUNDS):
            bare_ms.append(model.p50_ms(text, seconds))
            rounds.append(server.measure(step.value, replace(load, seconds=seconds)))
    middle = sorted(rounds, key=_p50_ms)[ROUNDS // 2]
    bare = statistics.median(bare_ms)
    return replace(middle, extra={BARE_MS: bare, OVER_BARE: _p50_ms(middle) / bare})


def _p50_ms(measurement: Measurement) -> float:
    latency = measurement.latency_ms
    return latency.p50 if latency is not None else math.inf


def _worker_config(status: Mapping[str, Any]) -> WorkerConfig:
    """Return what the first worker of a server was told, with the budget that it found."""
    settings = {entry.name: status[entry.name] for entry in option_fields() if entry.name in status}
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()
    }
    values["max_batch_tokens"] = status["workers"][0]["max_batch_tokens"]  # none is measured again
    config = ServerConfig(**values)
    return worker_config(config, NOWHERE, 0, place_workers(config)[0])
