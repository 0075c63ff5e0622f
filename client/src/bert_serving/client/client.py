"""`BertClient`: blocking calls, safe to share between threads, and to use after a fork.

Each call borrows a connection of its own, so that threads never wait for one another;
a connection that is given back is used again. A child of a fork notices that the
sockets are its parent's, and opens its own.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import zmq

from . import options
from .assembly import Encoding, Tokens
from .calls import EncodeOptions, StatusCall
from .connection import Connection
from .errors import RequestTimeout
from .messages import Welcome
from .progress import progress_bar
from .view import View

MAX_IDLE_CONNECTIONS = 16
READY_POLL_S = 0.1


class _Pool:
    """The connections of one process; one is used by one thread at a time."""

    def __init__(self, address: str, name: str, connect_timeout_s: float) -> None:
        self.pid = os.getpid()
        self._address = address
        self._name = name
        self._connect_timeout_s = connect_timeout_s
        self._context: zmq.Context[Any] = zmq.Context()
        self._lock = threading.Lock()
        self._idle: list[Connection] = []
        self._borrowed = 0
        self.is_closed = False

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        connection = self._borrow()
        try:
            if connection.session.welcome is None:
                connection.handshake(self._connect_timeout_s)
            yield connection
        finally:
            self._give_back(connection)

    def close(self) -> None:
        """Close what is idle; a connection in use is closed when its call ends."""
        with self._lock:
            self.is_closed = True
            idle, self._idle = self._idle, []
            is_unused = self._borrowed == 0
        for connection in idle:
            connection.close()
        if is_unused:
            self._context.term()

    def _borrow(self) -> Connection:
        with self._lock:
            if self.is_closed:
                raise ValueError("this BertClient is closed")
            connection = self._idle.pop() if self._idle else None
            self._borrowed += 1
        return connection or Connection(self._context, self._address, self._name)

    def _give_back(self, connection: Connection) -> None:
        session = connection.session
        with self._lock:
            self._borrowed -= 1
            usable = session.welcome is not None and session.refusal is None
            if usable and not self.is_closed and len(self._idle) < MAX_IDLE_CONNECTIONS:
                self._idle.append(connection)
                return
            is_last = self.is_closed and self._borrowed == 0
        connection.close()
        if is_last:
            self._context.term()


class BertClient:
    """A client of one `bert-serving-start` server.

    Args:
        ip: the server's host name or address.
        port: its native port (`-port`).
        port_out: accepted for bert-as-service's sake; there is only one port now.
        output_fmt: `ndarray`, or `list` for nested Python lists.
        show_server_config: print the server's settings when connected.
        identity: a name for this client, shown in the server's log.
        check_version: accepted; versions are always checked, by the protocol.
        check_length: warn (`TruncationWarning`) when rows were cut.
        check_token_info: accepted; tokens can always be asked for.
        ignore_all_checks: do not wait for the server in the constructor, and do not warn.
        timeout: milliseconds that a call waits for the next answer (a long call gets many);
            -1 for no limit.
        connect_timeout: milliseconds to wait for the server's first word.

    Raises:
        ServerUnreachable: nothing that speaks the protocol answered in `connect_timeout`.
        ProtocolError: the server speaks another version.

    All calls may raise `RequestTimeout`, `ServerUnreachable`, `ProtocolError` and the
    `ServerError`s of `bert_serving.client.errors`; a wrong argument is a `TypeError` or
    `ValueError`, raised before anything is sent.

    """

    def __init__(
        self,
        ip: str = "localhost",
        port: int = options.DEFAULT_PORT,
        port_out: int | None = None,  # noqa: ARG002  # bert-as-service's
        output_fmt: str = "ndarray",
        show_server_config: bool = False,
        identity: str | None = None,
        check_version: bool = True,  # noqa: ARG002  # bert-as-service's
        check_length: bool = True,
        check_token_info: bool = True,  # noqa: ARG002  # bert-as-service's
        ignore_all_checks: bool = False,
        timeout: float | None = options.DEFAULT_TIMEOUT_MS,
        *,
        connect_timeout: float = options.DEFAULT_CONNECT_TIMEOUT_MS,
    ) -> None:
        self.address = options.server_address(ip, port)
        self._output_fmt = options.output_format(output_fmt)
        self._timeout_s = options.seconds("timeout", timeout)
        self._connect_timeout_s = options.seconds("connect_timeout", connect_timeout)
        self._warn_if_cut = check_length and not ignore_all_checks
        self._identity = identity
        self._pool = self._new_pool()
        self._parents_pool: _Pool | None = None
        try:
            if not ignore_all_checks:
                self._welcome()
            if show_server_config:
                self._print_config()
        except BaseException:
            self.close()
            raise

    def encode(
        self,
        texts: Any,
        *,
        is_tokenized: bool = False,
        show_tokens: bool = False,
        layers: int | Iterable[int] | None = None,
        layer_reduce: str | None = None,
        pooling: str | None = None,
        normalize: bool | None = None,
        dims: int | None = None,
        dtype: Any = None,
        max_length: int | None = None,
        on_empty: str = "encode",
        show_progress_bar: bool = False,
    ) -> Any:
        """Return the embeddings of texts.

        Args:
            texts: one str, or any iterable of rows (a list, an iterator, a NumPy array or
                pandas Series of str); a pair of texts is a tuple. With `is_tokenized`, a row
                is a list of tokens, a pair a tuple of two lists.
            is_tokenized: the rows are tokens, which are only looked up in the vocabulary.
            show_tokens: also return the tokens of each row.
            layers: which hidden states, numbered as transformers' `hidden_states`; this and
                the options that follow are the server's own choice where they are None.
            layer_reduce: join several layers by `concat`, `sum` or `mean`.
            pooling: `mean`, `max`, `mean_max`, `first`, `last`, or `none` for a vector a token;
                bert-as-service's names (`REDUCE_MEAN`, `CLS_TOKEN`, …) mean the same.
            normalize: scale each vector to length 1.
            dims: keep only the first so many dimensions.
            dtype: `float32` or `float16`.
            max_length: tokens a row, special ones included; longer rows are cut.
            on_empty: `encode` a blank row as [CLS] [SEP], or raise an `error`.
            show_progress_bar: show rows, rate and time left on standard error.

        Returns:
            `[rows, dim]`, or `[dim]` for a single str. With pooling `none`, a list of arrays
            `[tokens of the row, dim]`, or one such array for a single str. With
            `show_tokens`, a tuple of that and the token strings of each row.

        """
        view = options.embedding_view(layers, layer_reduce, pooling, normalize, dims, dtype)
        encoding = self._encode(
            texts,
            options.encode_options(
                views={options.EMBEDDING: view},
                is_tokenized=is_tokenized,
                max_length=max_length,
                show_tokens=show_tokens,
            ),
            on_empty,
            show_progress_bar,
        )
        values = options.formatted(encoding.views[options.EMBEDDING], self._output_fmt)
        return (values, encoding.tokens) if show_tokens else values

    def encode_detailed(
        self,
        texts: Any,
        views: Mapping[str, View | Mapping[str, Any]] | None = None,
        *,
        is_tokenized: bool = False,
        show_tokens: bool = False,
        max_length: int | None = None,
        on_empty: str = "encode",
        show_progress_bar: bool = False,
    ) -> Encoding:
        """Return several views of texts at once, with all that the server says about them.

        Args:
            texts: as for `encode`.
            views: named views, each a `View` or a dict of its fields; None asks for the
                server's default view, named `embedding`.
            is_tokenized: as for `encode`.
            show_tokens: also answer tokens, their ids and segment ids.
            max_length: as for `encode`.
            on_empty: as for `encode`.
            show_progress_bar: as for `encode`.

        Returns:
            An `Encoding`; for a single str each of its values is that of the only row.

        """
        if views is None:
            views = {options.EMBEDDING: View()}
        encode_options = options.encode_options(
            views=views, is_tokenized=is_tokenized, max_length=max_length, show_tokens=show_tokens
        )
        return self._encode(texts, encode_options, on_empty, show_progress_bar, warn=False)

    def tokenize(
        self, texts: Any, *, is_tokenized: bool = False, max_length: int | None = None
    ) -> Tokens:
        """Return the tokens, vocabulary ids and segment ids of texts, as the model reads them.

        Args:
            texts: as for `encode`.
            is_tokenized: as for `encode`.
            max_length: as for `encode`.

        Returns:
            `Tokens(tokens, ids, segment_ids)`: each a list with an entry a row, or that
            entry alone for a single str.

        """
        encode_options = options.encode_options(
            views={}, is_tokenized=is_tokenized, max_length=max_length, show_tokens=True
        )
        return options.tokens_of(self._encode(texts, encode_options, "encode", False))

    @property
    def server_status(self) -> dict[str, Any]:
        """The server's settings, statistics, `state` and `workers`."""
        with self._connections().connection() as connection:
            call = StatusCall(self._timeout_s)
            connection.session.request_status(call, time.monotonic())
            connection.wait_for(call)
        call.raise_error()
        return dict(call.status)

    def wait_ready(self, timeout: float | None = None) -> None:
        """Wait until the server has a worker that can compute.

        Args:
            timeout: milliseconds; None for the client's own `timeout`.

        Raises:
            RequestTimeout: the server was not ready in time.

        """
        timeout_s = self._timeout_s if timeout is None else options.seconds("timeout", timeout)
        deadline = time.monotonic() + timeout_s
        while self._welcome(refresh=True).state != "ready":
            if time.monotonic() >= deadline:
                raise RequestTimeout(
                    f"{self.address} was not ready within {timeout_s * 1000:.0f} ms: "
                    "the server answers, but none of its workers does; its log says why"
                )
            time.sleep(READY_POLL_S)

    def close(self) -> None:
        """Close all connections; a second close does nothing."""
        if self._pool.pid == os.getpid() and not self._pool.is_closed:
            self._pool.close()

    def __enter__(self) -> BertClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _encode(
        self,
        texts: Any,
        encode_options: EncodeOptions,
        on_empty: str,
        show_progress_bar: bool,
        *,
        warn: bool = True,
    ) -> Encoding:
        call = options.new_call(texts, encode_options, self._timeout_s, on_empty)
        progress = progress_bar(call.total) if show_progress_bar else None
        call.on_progress = progress.update if progress else None
        try:
            with self._connections().connection() as connection:
                connection.session.submit(call, time.monotonic())
                connection.wait_for(call)
                encoding = options.finished_encoding(call, connection.session)
        finally:
            if progress:
                progress.close()
        if warn and self._warn_if_cut:
            options.warn_if_cut(encoding, encode_options.max_length, stacklevel=3)
        return encoding

    def _welcome(self, *, refresh: bool = False) -> Welcome:
        with self._connections().connection() as connection:
            if refresh:
                connection.handshake(self._connect_timeout_s)
            assert connection.session.welcome is not None
            return connection.session.welcome

    def _connections(self) -> _Pool:
        pool = self._pool
        if pool.pid != os.getpid():  # a fork: the sockets are the parent's, and so is the lock
            self._parents_pool, self._pool = pool, self._new_pool()
        return self._pool

    def _new_pool(self) -> _Pool:
        return _Pool(self.address, options.client_name(self._identity), self._connect_timeout_s)

    def _print_config(self) -> None:
        for name, value in sorted(self.server_status.items()):
            print(f"{name:>30} = {value}")  # noqa: T201  # what show_server_config is for


class ConcurrentBertClient(BertClient):
    """bert-as-service's client for threads; `BertClient` itself is one now.

    Args:
        max_concurrency: accepted; calls that are too many for the server wait their turn.
        **kwargs: as for `BertClient`.

    """

    def __init__(self, max_concurrency: int = 10, **kwargs: Any) -> None:  # noqa: ARG002
        super().__init__(**kwargs)
