"""Who takes part in a comparison: ours, through a server and a client, and peers."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from bert_serving.client import BertClient
from bert_serving.client.errors import ServingError
from bert_serving.client.view import View

from .measurement import layers_needed
from .peers.process import PeerFacts, PeerProcess
from .server_process import ServerFailed, ServerProcess

OURS = "bert-serving"
ANSWER_TIMEOUT_MS = 120_000


class Contender(Protocol):
    """Someone who encodes texts: a peer raises PeerFailed where it cannot, ours ServerFailed.

    Attributes:
        name, version: what it is.
        dtype: what it computes in.
        layers: how many it computes.
        max_tokens: it cuts rows to so many; None if only the model limits them.

    """

    name: str
    version: str
    dtype: str
    layers: int
    max_tokens: int | None

    def encode(self, texts: Sequence[str]) -> float:
        """Encode texts; returns the seconds it took."""
        ...

    def vectors(self, texts: Sequence[str]) -> list[list[float]]:
        """Return the mean over the tokens of the last layer that it computes."""
        ...

    def tune(self, texts: Sequence[str], limit_s: float) -> str:
        """Find the best settings for such texts; returns those in use, in words."""
        ...


class OurServer:
    """A server of ours in one type, and the client that all its contenders share.

    Args:
        process: the server, started.

    """

    def __init__(self, process: ServerProcess) -> None:
        self._process = process
        self.client = BertClient(
            ip=process.host, port=process.port, identity="comparison", timeout=ANSWER_TIMEOUT_MS
        )
        try:
            self.status: dict[str, Any] = self.client.server_status
        except ServingError as error:
            self.client.close()
            raise ServerFailed(f"the server does not answer: {error}") from None

    def check_alive(self) -> None:
        """Raise ServerFailed if it has ended."""
        self._process.check_alive()

    @contextmanager
    def asked(self) -> Iterator[BertClient]:
        """Give its client; a call that fails is a ServerFailed, which says how the server ended."""
        try:
            yield self.client
        except ServingError as error:
            self.check_alive()
            raise ServerFailed(f"{OURS}, {self.dtype} failed: {error}") from None

    @property
    def dtype(self) -> str:
        """What it computes in."""
        return str(self.status["model"]["dtype"])

    @property
    def num_layers(self) -> int:
        """How many layers its model has."""
        return int(self.status["model"]["num_layers"])

    @property
    def contenders(self) -> list[Ours]:
        """It with the layers that its own view needs, and with all of them."""
        view = View.parse(self.status["default_view"])
        needed = layers_needed(view, self.num_layers)
        return [Ours(self, layers) for layers in dict.fromkeys((needed, self.num_layers))]

    def vectors(self, texts: Sequence[str], layers: int) -> list[list[float]]:
        """Return the mean over the tokens of a layer. Raises ServerFailed."""
        with self.asked() as client:
            array = client.encode(list(texts), layers=[layers], pooling="mean", normalize=False)
        vectors: list[list[float]] = array.tolist()
        return vectors

    def close(self) -> None:
        """Close the client, and end the server."""
        self.client.close()
        self._process.stop(at_once=True)


class Ours:
    """Our server, asked for the mean over the tokens of one layer."""

    name: str = OURS
    max_tokens: int | None = None

    def __init__(self, server: OurServer, layers: int) -> None:
        self._server = server
        self.layers = layers
        self.version = str(server.status["server_version"])
        self.dtype = server.dtype

    def encode(self, texts: Sequence[str]) -> float:
        """Encode texts through the client. Raises ServerFailed."""
        with self._server.asked() as client:
            started = time.perf_counter()
            client.encode(texts, layers=[self.layers], pooling="mean")
            return time.perf_counter() - started

    def vectors(self, texts: Sequence[str]) -> list[list[float]]:
        """Return the mean over the tokens of its layer."""
        return self._server.vectors(texts, self.layers)

    def tune(self, texts: Sequence[str], limit_s: float) -> str:  # noqa: ARG002
        """Tune nothing: the server has calibrated itself."""
        workers = self._server.status["workers"]
        tokens = ", ".join(f"{worker['max_batch_tokens']:,}" for worker in workers)
        return f"{len(workers)} x {tokens} tokens at a time, as calibrated"


class PeerContender:
    """A peer that is ready."""

    def __init__(self, process: PeerProcess, facts: PeerFacts) -> None:
        self._process = process
        self.name, self.version = facts.name, facts.version
        self.dtype, self.layers = facts.dtype, facts.layers
        self.max_tokens = facts.max_tokens
        self.encode = process.encode
        self.vectors = process.vectors
        self.tune = process.tune

    def stop(self) -> None:
        """End it."""
        self._process.stop()
