"""The server under test: one at a time, with the options that an experiment wants."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bert_serving.client import BertClient
from bert_serving.client.errors import ServingError
from bert_serving.client.view import View

from .experiments import Load
from .load import LoadResult, Sentences, run_load
from .machine import MatrixProduct, best_matrix_product
from .measurement import Measurement, Work, layers_needed, measure
from .server_process import ServerFailed, ServerProcess
from .targets import Target
from .words import COMMON_WORDS, MOST_WORDS, whole_words

SPECIAL_TOKENS = 2


class ServerUnderTest:
    """Starts servers, asks what they serve, and puts loads on them.

    Args:
        log: where the servers' logs are appended.
        wait_s: how long a server may take to start.
        words: to make sentences of; none for common ones that the model knows.
        check: called often; what it raises ends whatever is waited for.

    """

    def __init__(
        self, log: Path, *, wait_s: float, words: Sequence[str], check: Callable[[], None]
    ) -> None:
        self.status: dict[str, Any] = {}
        self.has_served = False
        self._log = log
        self._wait_s = wait_s
        self._words = words
        self._check_signals = check
        self._server: ServerProcess | None = None
        self._products: dict[tuple[str, str], MatrixProduct] = {}

    def serve(self, options: Mapping[str, Any]) -> None:
        """Have a server with these options that is ready: the last one, if it has them.

        Raises:
            ServerFailed: it did not start, or does not answer.

        """
        if self._server is not None and self._server.options == options and self._server.is_alive:
            return
        self.stop(at_once=False)
        self._server = ServerProcess(
            options, self._log, wait_s=self._wait_s, check=self._check_signals
        )
        try:
            self._server.start()
            self.status = self._ask(self._server)
        except ServerFailed:
            self.stop(at_once=True)
            raise
        self.has_served = True

    def stop(self, *, at_once: bool) -> None:
        """End the server, if there is one; see `ServerProcess.stop`."""
        if self._server is not None:
            self._server.stop(at_once=at_once)
            self._server = None

    def check(self) -> None:
        """Raise what ends a wait: a signal's, or ServerFailed if the server has ended."""
        self._check_signals()
        if self._server is not None:
            self._server.check_alive()

    @property
    def sentences(self) -> Sentences:
        """What sentences for this server are made of."""
        max_length: int = self.status["model"]["max_length"]
        return Sentences(words=self._words, longest=min(max_length - SPECIAL_TOKENS, MOST_WORDS))

    def load(self, load: Load) -> LoadResult:
        """Put a load on it.

        Raises:
            LoadFailed: a process of clients ended.
            ServerFailed: the server ended.

        """
        server = self._server
        assert server is not None
        return run_load(
            load,
            target=Target.ours(server.host, server.port),
            sentences=self.sentences,
            check=self.check,
            server_cpu_s=server.cpu_s,
        )

    def measure(self, value: int, load: Load, product: MatrixProduct | None = None) -> Measurement:
        """Put a load on it; returns what its calls amount to. Raises as `load` does."""
        return with_cores(self.load(load), value, self._work(load, product))

    def measure_other(self, value: int, load: Load, target: Target) -> Measurement:
        """Put the same load on another server; LoadFailed if a process of clients ended."""
        loaded = run_load(load, target=target, sentences=self.sentences, check=self._check_signals)
        return replace(with_cores(loaded, value, None), label=target.name)

    def matrix_product(self) -> MatrixProduct | None:
        """Return the best matrix product in the model's type; the server should be idle."""
        model = self.status["model"]
        if model["architecture"] == "fake":  # it multiplies nothing
            return None
        devices = {worker["device"] for worker in self.status["workers"]}
        product = best_matrix_product(
            model["dtype"], model["device"], len(devices), self._check_signals
        )
        # the best so far is nearest to the limit: others may be using the machine now
        kind = (product.dtype, product.device)
        best = self._products.get(kind, product)
        self._products[kind] = max(product, best, key=lambda p: p.gflops or 0.0)
        return self._products[kind]

    def _work(self, load: Load, product: MatrixProduct | None) -> Work | None:
        if product is None:
            return None
        model, view = self.status["model"], View.parse(self.status["default_view"])
        if load.pooling_layer is not None:
            view = replace(view, layers=(load.pooling_layer,))
        layers = layers_needed(view, model["num_layers"])
        return Work(layers, model["hidden_size"], product.gflops)

    def _ask(self, server: ServerProcess) -> dict[str, Any]:
        """Return the server's status; at the first one, also find out which words it knows."""
        try:
            with BertClient(ip=server.host, port=server.port) as client:
                if not self._words:
                    tokens = client.tokenize(list(COMMON_WORDS)).tokens
                    self._words = whole_words(COMMON_WORDS, [len(row) for row in tokens])
                return client.server_status
        except ServingError as error:
            raise ServerFailed(f"the server does not answer: {error}") from None


def with_cores(loaded: LoadResult, value: int, work: Work | None) -> Measurement:
    """Return what the calls of a load amount to, and which cores they kept busy."""
    return replace(
        measure(value, loaded.calls, work),
        client_cores=loaded.client_cores,
        server_cores=loaded.server_cores,
    )
