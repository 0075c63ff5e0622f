"""`AsyncBertClient`: the same calls for asyncio, over the same fleet and a socket a server.

ZeroMQ's file descriptor tells the loop only that something may have changed, and only
at its edge; so every turn sends, then receives until nothing is left.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any

import zmq

from . import options
from .assembly import Encoding, Tokens
from .broadcasts import Broadcast
from .calls import Call, EncodeOptions, MembershipCall, StatusCall
from .connection import MAX_RECEIVED_AT_ONCE, open_sockets, receive_all, send_farewell
from .context import process_context
from .endings import not_ready
from .endpoint import Endpoint
from .errors import RequestTimeout, ServerUnreachable
from .fleet import Fleet
from .listening import warn_if_dropped
from .pairs import check_separator
from .servers import ServerKey, check_one_server, server_addresses, server_endpoints, statuses
from .sockets import NoDescriptors, is_shut_out, send_frames
from .unreachable import unreachable
from .view import View

READY_POLL_S = 0.1


class _AsyncConnection:
    """A socket for each server, and the fleet over them, on one event loop."""

    def __init__(self, endpoints: Sequence[Endpoint], name: str, hedge_after_s: float) -> None:
        addresses = [endpoint.address for endpoint in endpoints]
        self.is_shut_out = False
        self._endpoints = endpoints
        self.fleet = Fleet(name, addresses, hedge_after_s=hedge_after_s, jitter=random.random)
        self._loop = asyncio.get_running_loop()
        self._sockets = open_sockets(process_context(), endpoints)
        self._receivers = [
            (socket, partial(self.fleet.receive, number))
            for number, socket in enumerate(self._sockets)
        ]
        self._timer: asyncio.TimerHandle | None = None
        self._turn_is_due = False
        self._arrived = asyncio.Event()
        self._is_closed = False
        for socket in self._sockets:
            self._loop.add_reader(socket.fileno(), self.turn)

    def close(self) -> None:
        """Close the sockets; calls that still wait end with an error."""
        closed = ServerUnreachable("this AsyncBertClient was closed during the call")
        self.fleet.close(self.fleet.refusal or closed)
        self._arrived.set()
        self._is_closed = True
        send_farewell(self.fleet, self._sockets)
        if self._timer is not None:
            self._timer.cancel()
        for socket in self._sockets:
            self._loop.remove_reader(socket.fileno())
            socket.close()

    def close_soon(self) -> None:
        """Have the loop close this, from wherever the garbage collector runs."""
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self.close)

    def turn_soon(self) -> None:
        """Take a turn after whatever else the loop has to run now, once."""
        if not self._turn_is_due:
            self._turn_is_due = True
            self._loop.call_soon(self.turn)

    def turn(self) -> None:
        """Send what there is to send and take in what has arrived."""
        self._turn_is_due = False
        if self._is_closed:
            return
        while True:
            if not self._send_all():
                self.is_shut_out = True
                where = " or ".join(map(str, self._endpoints))
                self.fleet.close(ServerUnreachable(f"{where} refused the connection"))
                break
            received = [receive_all(socket, receive) for socket, receive in self._receivers]
            if max(received) == MAX_RECEIVED_AT_ONCE:  # let others have a turn
                self.turn_soon()
                break
            if max(received) == 0:
                break
        self.fleet.advance(time.monotonic())
        if self.fleet.only.broadcasts or self.fleet.refusal is not None:
            self._arrived.set()
        self._set_timer()

    def _send_all(self) -> bool:
        """Send what there is to send; returns False if no server lets this client in."""
        while message := self.fleet.next_message(time.monotonic()):
            number, frames = message
            try:
                send_frames(self._sockets[number], frames)
            except zmq.Again:
                self.fleet.shut_out(number)
        for number, socket in enumerate(self._sockets):
            if is_shut_out(socket):
                self.fleet.shut_out(number)
        return not self.fleet.is_shut_out

    async def wait_for(self, call: Call) -> None:
        """Wait until a call is done; cancelling this tells the server."""
        if call.is_done:
            return
        done = self._loop.create_future()
        call.on_done = lambda: None if done.done() else done.set_result(None)
        self.turn_soon()
        try:
            await done
        except asyncio.CancelledError:
            self.fleet.abandon(call)
            self.turn_soon()
            raise

    async def next_broadcast(self, timeout_s: float) -> Broadcast | None:
        """Return the oldest unread broadcast, waiting for one; None if none came in time."""
        unread = self.fleet.only.broadcasts
        deadline = None if timeout_s == math.inf else self._loop.time() + timeout_s
        while not unread:
            if self.fleet.refusal is not None:
                raise self.fleet.refusal
            self._arrived.clear()
            left_s = None if deadline is None else deadline - self._loop.time()
            try:
                await asyncio.wait_for(self._arrived.wait(), left_s)
            except asyncio.TimeoutError:
                return None
        dropped, unread.dropped = unread.dropped, 0
        warn_if_dropped(dropped, stacklevel=3)
        return unread.take()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        wakeup = self.fleet.next_wakeup()
        if wakeup is not None:
            self._timer = self._loop.call_later(max(wakeup - time.monotonic(), 0.001), self.turn)


class AsyncBertClient:
    """An asyncio client of one `bert-serving-start` server, or of several.

    Connects at its first call, or on `async with`. One instance serves any number of
    tasks of one event loop; their requests share one connection a server, and its window.

    Args:
        ip: the server's host name or address.
        port: its native port (`-port`).
        output_fmt: `ndarray`, or `list` for nested Python lists.
        identity: a name for this client, shown in the server's log.
        check_length: warn (`TruncationWarning`) when rows were cut.
        timeout: milliseconds that a call waits for the next answer; -1 for no limit.
        connect_timeout: milliseconds to wait for the server's first word.
        pair_separator: as for `BertClient`.
        server_key: as for `BertClient`.
        client_cert: as for `BertClient`.
        servers: as for `BertClient`.
        hedge_after: as for `BertClient`.

    """

    _connection: _AsyncConnection | None = None

    def __init__(
        self,
        ip: str = "localhost",
        port: int = options.DEFAULT_PORT,
        *,
        output_fmt: str = "ndarray",
        identity: str | bytes | None = None,
        check_length: bool = True,
        timeout: float | None = options.DEFAULT_TIMEOUT_MS,
        connect_timeout: float = options.DEFAULT_CONNECT_TIMEOUT_MS,
        pair_separator: str | None = None,
        server_key: ServerKey = None,
        client_cert: str | os.PathLike[str] | None = None,
        servers: Sequence[str] | None = None,
        hedge_after: float | None = None,
    ) -> None:
        addresses = server_addresses(servers, ip, port)
        self.endpoints = server_endpoints(addresses, server_key, client_cert)
        self._output_fmt = options.output_format(output_fmt)
        self._timeout_s = options.seconds("timeout", timeout)
        self._connect_timeout_s = options.seconds("connect_timeout", connect_timeout)
        self._hedge_after_s = options.seconds("hedge_after", hedge_after)
        self._check_length = check_length
        self._name = options.client_name(identity)
        self._sender = options.sender_name(identity or f"pid {os.getpid()}")
        self._pair_separator = check_separator(pair_separator)
        self._is_closed = False

    async def encode(
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
        pair_separator: str | None = None,
        group: str | None = None,
    ) -> Any:
        """Return the embeddings of texts; see `BertClient.encode`."""
        encode_options = options.embedding_options(
            layers=layers,
            layer_reduce=layer_reduce,
            pooling=pooling,
            normalize=normalize,
            dims=dims,
            dtype=dtype,
            is_tokenized=is_tokenized,
            show_tokens=show_tokens,
            max_length=max_length,
            on_empty=on_empty,
            pair_separator=pair_separator or self._pair_separator,
            group=group,
            sender=self._sender,
        )
        encoding = await self._encode(texts, encode_options, warn=self._check_length)
        values = options.formatted(encoding.views[options.EMBEDDING], self._output_fmt)
        return (values, encoding.tokens) if show_tokens else values

    async def join(self, group: str) -> None:
        """Become a member of a broadcast group; see `BertClient.join`."""
        check_one_server(self.endpoints)
        session = (await self._connected()).fleet.only
        await self._set_groups([*session.groups, options.group_name(group)])

    async def leave(self, group: str) -> None:
        """End being a member; what has come already can still be read."""
        check_one_server(self.endpoints)
        session = (await self._connected()).fleet.only
        await self._set_groups([name for name in session.groups if name != group])

    async def listen(self, timeout: float | None = None) -> AsyncIterator[Broadcast]:
        """Yield what other clients send to the groups of this one; see `BertClient.listen`."""
        timeout_s = self._timeout_s if timeout is None else options.seconds("timeout", timeout)
        connection = await self._connected()
        if not connection.fleet.only.groups and not connection.fleet.only.broadcasts:
            raise ValueError("this client is in no group: join() one first")
        while (found := await connection.next_broadcast(timeout_s)) is not None:
            yield found._replace(embedding=options.formatted(found.embedding, self._output_fmt))

    async def encode_detailed(
        self,
        texts: Any,
        views: Mapping[str, View | Mapping[str, Any]] | None = None,
        *,
        is_tokenized: bool = False,
        show_tokens: bool = False,
        max_length: int | None = None,
        on_empty: str = "encode",
        pair_separator: str | None = None,
    ) -> Encoding:
        """Return several views of texts at once; see `BertClient.encode_detailed`."""
        if views is None:
            views = {options.EMBEDDING: View()}
        encode_options = options.encode_options(
            views=views,
            is_tokenized=is_tokenized,
            max_length=max_length,
            show_tokens=show_tokens,
            on_empty=on_empty,
            pair_separator=pair_separator or self._pair_separator,
        )
        return await self._encode(texts, encode_options)

    async def tokenize(
        self,
        texts: Any,
        *,
        is_tokenized: bool = False,
        max_length: int | None = None,
        pair_separator: str | None = None,
    ) -> Tokens:
        """Return tokens, ids and segment ids of texts; see `BertClient.tokenize`."""
        encode_options = options.encode_options(
            views={},
            is_tokenized=is_tokenized,
            max_length=max_length,
            show_tokens=True,
            pair_separator=pair_separator or self._pair_separator,
        )
        return options.tokens_of(await self._encode(texts, encode_options))

    async def server_status(self) -> dict[str, Any]:
        """Return the server's settings, statistics, `state` and `workers`."""
        connection = await self._connected()
        call = StatusCall(self._timeout_s)
        connection.fleet.request_status(call, time.monotonic())
        await connection.wait_for(call)
        call.raise_error()
        return dict(call.status)

    async def server_statuses(self) -> list[dict[str, Any]]:
        """Return the status of each server, with its `address`; see `BertClient`."""
        connection = await self._connected()
        timeout_s = min(self._timeout_s, self._connect_timeout_s)
        calls = [StatusCall(timeout_s) for _ in self.endpoints]
        for number, call in enumerate(calls):
            connection.fleet.request_status(call, time.monotonic(), number)
        for call in calls:
            await connection.wait_for(call)
        return statuses(self.endpoints, calls)

    async def wait_ready(self, timeout: float | None = None) -> None:
        """Wait until the server has a worker that can compute; see `BertClient.wait_ready`."""
        timeout_s = self._timeout_s if timeout is None else options.seconds("timeout", timeout)
        deadline = time.monotonic() + timeout_s
        while True:
            error = await self._hello(max(deadline - time.monotonic(), READY_POLL_S))
            connection = self._connection
            welcome = connection.fleet.welcome if connection is not None else None
            if error is None and welcome is not None and welcome.state == "ready":
                return
            if time.monotonic() >= deadline:
                raise not_ready(" or ".join(map(str, self.endpoints)), timeout_s, error)
            await asyncio.sleep(READY_POLL_S)

    async def close(self) -> None:
        """Close the connection; calls that still wait end with `ServerUnreachable`."""
        self._is_closed = True
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __del__(self) -> None:
        if self._connection is not None:  # a client need not be closed
            self._connection.close_soon()

    async def __aenter__(self) -> AsyncBertClient:
        await self._connected()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def _encode(
        self, texts: Any, encode_options: EncodeOptions, *, warn: bool = False
    ) -> Encoding:
        if encode_options.group is not None:
            check_one_server(self.endpoints)
        call = options.new_call(texts, encode_options, self._timeout_s)
        connection = await self._connected()
        connection.fleet.submit(call, time.monotonic())
        await connection.wait_for(call)
        encoding = options.finished_encoding(call, connection.fleet)
        if warn:
            options.warn_if_cut(encoding, stacklevel=3)
        return encoding

    async def _set_groups(self, groups: Sequence[str]) -> None:
        connection = await self._connected()
        call = MembershipCall(self._timeout_s)
        connection.fleet.set_groups(call, list(dict.fromkeys(groups)), time.monotonic())
        await connection.wait_for(call)
        call.raise_error()

    async def _hello(self, within_s: float) -> Exception | None:
        """Say hello until it is answered; returns why it was not, if time may mend that."""
        connection, call = await self._opened(), Call(within_s)
        connection.fleet.hello(call, time.monotonic())
        await connection.wait_for(call)
        if connection.is_shut_out:
            raise await asyncio.to_thread(unreachable, self.endpoints)
        if self._is_closed or not isinstance(call.error, (RequestTimeout, ServerUnreachable)):
            call.raise_error()
        return call.error

    async def _opened(self) -> _AsyncConnection:
        deadline = time.monotonic() + NoDescriptors.RELEASE_S
        while True:
            if self._is_closed:
                raise ValueError("this AsyncBertClient is closed")
            if self._connection is not None and self._connection.fleet.refusal is not None:
                self._connection.close()
                self._connection = None
            try:
                if self._connection is None:
                    self._connection = _AsyncConnection(
                        self.endpoints, self._name, self._hedge_after_s
                    )
                return self._connection
            except NoDescriptors:
                if time.monotonic() >= deadline:
                    raise
            await asyncio.sleep(NoDescriptors.RETRY_S)

    async def _connected(self) -> _AsyncConnection:
        connection = await self._opened()
        if connection.fleet.welcome is None:
            await self._shake_hands(connection)
        return connection

    async def _shake_hands(self, connection: _AsyncConnection) -> None:
        call = Call(self._connect_timeout_s)
        connection.fleet.hello(call, time.monotonic())
        await connection.wait_for(call)
        if call.error is None:
            return
        if self._connection is connection:
            self._connection = None
            connection.close()
        if connection.is_shut_out:
            raise await asyncio.to_thread(unreachable, self.endpoints)
        # its time was up, or that of another call, which has closed the connection
        was_closed = isinstance(call.error, ServerUnreachable) and not self._is_closed
        if was_closed or isinstance(call.error, RequestTimeout):
            raise await asyncio.to_thread(unreachable, self.endpoints, self._connect_timeout_s)
        raise call.error
