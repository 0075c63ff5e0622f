"""The server of a run, what its clients must know of it, and what has been done to it."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt

from bert_serving.client import BertClient
from bert_serving.server.model.fake import fake_embedding

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "integration"))

from account import Account
from legacy_client import legacy_ports, old_wire
from server_process import COMMANDS, ServerProcess, memory_kib

__all__ = [
    "COMMANDS",
    "ServerProcess",
    "memory_kib",
    "old_wire",
]  # from the tests, whose folder is added here

DIM = 32
TIMEOUT_S = 40.0
"""Of every call: longer than the supervisor's longest wait before it starts a worker again."""


@dataclass
class Scene:
    """One run.

    Attributes:
        server: the one that is ill-treated.
        account: what became of every request.
        seed: of all that is drawn by chance.
        stop: set when clients are to ask for nothing more.
        faults: how often each has struck.
        deaths: when a process that holds requests, and is not a worker, was killed last.

    """

    server: ServerProcess
    account: Account
    seed: int
    stop: threading.Event = field(default_factory=threading.Event)
    faults: Counter[str] = field(default_factory=Counter)
    deaths: dict[str, float] = field(default_factory=dict)

    @property
    def legacy(self) -> tuple[int, int]:
        """Where clients of bert-as-service send and receive."""
        return legacy_ports(self.server)

    def client(self, **options: Any) -> BertClient:
        """Return a client."""
        timeout = TIMEOUT_S * 1000
        return self.server.client(timeout=timeout, connect_timeout=timeout, **options)

    def note_death(self, role: str) -> None:
        """Note that a role's process is killed now, with all that it holds."""
        self.deaths[role] = time.monotonic()

    def died_since(self, role: str, since: float) -> bool:
        """Whether a role's process was killed, or was about to be, after an instant."""
        return self.deaths.get(role, 0.0) >= since

    def still_answers(self) -> bool:
        """Whether a new client gets a right answer."""
        texts = texts_of(Random(self.seed), 20)
        with self.client() as client:
            return np.array_equal(client.encode(texts), embeddings(texts))


def texts_of(rng: Random, most: int) -> list[str]:
    """Return some texts, no two calls the same."""
    number = rng.randrange(1 << 40)
    return [
        f"text {number} {row} " + "word " * rng.randrange(9) for row in range(rng.randint(1, most))
    ]


def embeddings(texts: Sequence[str]) -> npt.NDArray[np.float32]:
    """Return what the server must answer."""
    return np.stack([fake_embedding(text, DIM) for text in texts])
