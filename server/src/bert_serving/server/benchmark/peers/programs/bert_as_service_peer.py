"""bert-as-service 1.10, wherever it runs: by its own protocol, without its client.

Its client cannot be installed beside ours, as both have one name. The texts go out in as
many requests as its workers can take at a time, as its documentation advises.
"""

from __future__ import annotations

import contextlib
import json
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import zmq

from .lines import Life, Options, Peer
from .tuning import fastest

ROWS = (256, 1024, 64)
"""Rows of a request worth trying, the likeliest first."""

TIMEOUT_S = 120.0
CONNECT_TIMEOUT_S = 10.0
ATTEMPTS = 10


class Conversation:
    """The two sockets of one client, and its requests."""

    def __init__(self, address: str) -> None:
        host, port, port_out = address.rsplit(":", 2)
        self._address = address
        self._identity = str(uuid.uuid4()).encode()
        self._last = 0
        context: zmq.Context[Any] = zmq.Context()
        self._push, self._subscriber = context.socket(zmq.PUSH), context.socket(zmq.SUB)
        self._push.linger = self._subscriber.linger = 0
        self._subscriber.subscribe(self._identity)
        self._subscriber.connect(f"tcp://{host}:{port_out}")
        self._push.connect(f"tcp://{host}:{port}")

    def settings(self) -> dict[str, Any]:
        """Return what the server says of itself.

        Asked again every second: an answer is lost that comes before the subscription is there.
        """
        numbers: set[int] = set()
        for _ in range(ATTEMPTS):
            numbers.add(self._send(b"SHOW_CONFIG", 1))
            with contextlib.suppress(TimeoutError):
                return dict(json.loads(self._receive(numbers, 1.0)[1]))
        raise TimeoutError(f"{self._address} did not answer within {ATTEMPTS} s: is it the server?")

    def encode(self, texts: list[str], rows: int) -> Any:
        """Return the vectors of texts that go out in requests of so many rows, all at once."""
        parts = [texts[start : start + rows] for start in range(0, len(texts), rows)]
        numbers = [self._send(json.dumps(part).encode(), len(part)) for part in parts]
        answers, missing = {}, set(numbers)
        while missing:
            frames = self._receive(missing, TIMEOUT_S)
            header, number = json.loads(frames[1]), int(frames[-1])
            answers[number] = np.frombuffer(frames[2], header["dtype"]).reshape(header["shape"])
            missing.remove(number)
        return np.concatenate([answers[number] for number in numbers])

    def _send(self, body: bytes, rows: int) -> int:
        if not self._push.poll(CONNECT_TIMEOUT_S * 1000, zmq.POLLOUT):
            raise TimeoutError(f"{self._address} takes nothing in: does the server run?")
        self._last += 1
        self._push.send_multipart([self._identity, body, b"%d" % self._last, b"%d" % rows])
        return self._last

    def _receive(self, missing: set[int], within_s: float) -> list[bytes]:
        while self._subscriber.poll(within_s * 1000):
            frames: list[bytes] = self._subscriber.recv_multipart()
            if int(frames[-1]) in missing:  # not that of a request that was given up
                return frames
        raise TimeoutError(f"{self._address} did not answer within {within_s:g} s")


def open_peer(options: Options, _: Life) -> Peer:
    """Ask the server what it is."""
    assert options.address is not None
    conversation = Conversation(options.address)
    settings = conversation.settings()
    rows = ROWS[0]

    def tune(texts: list[str], limit_s: float) -> str:
        nonlocal rows
        rows = fastest(ROWS, lambda tried: conversation.encode(texts, tried), limit_s)
        workers, length = settings["num_worker"], settings["max_seq_len"]
        longest = "the longest of a batch" if length is None else f"{length} tokens"
        return f"requests of {rows} rows, {workers} workers, padded to {longest}"

    length = settings["max_seq_len"]
    return Peer(
        name="bert-as-service",
        version=str(settings["server_version"]),
        dtype="float16" if settings.get("fp16") else "float32",
        layers=_layers(settings, options.model_dir),
        threads=options.threads,
        encode=lambda texts: conversation.encode(texts, rows),
        tune=tune,
        max_tokens=None if length is None else int(length),
    )


def _layers(settings: dict[str, Any], model_dir: str) -> int:
    """Return how many layers its server computes: it cuts its graph behind the last one used.

    The original counts from 0 without the embeddings; our gateway, which speaks as it does but
    has a `native_version`, counts these as 0.
    """
    embeddings = 1 if "native_version" in settings else 0
    config = json.loads(Path(model_dir, "config.json").read_text("utf-8"))
    num_layers = int(config["num_hidden_layers"])
    pooled: list[int] = settings["pooling_layer"]
    return max(layer + 1 - embeddings if layer >= 0 else num_layers + 1 + layer for layer in pooled)
