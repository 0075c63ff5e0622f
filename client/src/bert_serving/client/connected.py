"""What a client is and has open, beneath its calls."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Sequence
from types import TracebackType
from typing import Any, TypeVar

from . import options
from .assembly import Encoding
from .calls import EncodeOptions, StatusCall
from .endings import not_ready
from .errors import RequestTimeout, ServerUnreachable
from .fleet import Fleet
from .messages import Welcome
from .pairs import check_separator
from .pending import PendingCalls
from .pool import ConnectionPool
from .process import ClientProcess
from .progress import progress_bar
from .servers import ServerKey, check_one_server, server_addresses, server_endpoints, statuses
from .version import __version__

READY_POLL_S = 0.1
_CHANGING = ("statistic", "workers")  # what the status has and the configuration has not
_Self = TypeVar("_Self", bound="ConnectedClient")


class ConnectedClient:
    """Where the servers are, what the caller has chosen, and the connections; see `BertClient`."""

    _max_connections: int | None = None

    def __init__(
        self,
        ip: str = "localhost",
        port: int = options.DEFAULT_PORT,
        port_out: int = options.DEFAULT_PORT + 1,
        output_fmt: str = "ndarray",
        show_server_config: bool = False,
        identity: str | bytes | None = None,
        check_version: bool = True,  # noqa: ARG002  # bert-as-service's
        check_length: bool = True,
        check_token_info: bool = True,  # noqa: ARG002  # bert-as-service's
        ignore_all_checks: bool = False,
        timeout: float | None = options.DEFAULT_TIMEOUT_MS,
        *,
        connect_timeout: float = options.DEFAULT_CONNECT_TIMEOUT_MS,
        pair_separator: str | None = None,
        server_key: ServerKey = None,
        client_cert: str | os.PathLike[str] | None = None,
        servers: Sequence[str] | None = None,
        hedge_after: float | None = None,
    ) -> None:
        addresses = server_addresses(servers, ip, port)
        self.endpoints = server_endpoints(addresses, server_key, client_cert)
        self.ip = ip
        self.port = port
        self.port_out = port_out
        self.output_fmt = options.output_format(output_fmt)
        self.identity = identity or str(uuid.uuid4()).encode("ascii")
        self.timeout = timeout
        options.seconds("timeout", timeout)
        self._name = options.client_name(identity)
        self._sender = options.sender_name(self.identity)
        self._connect_timeout_s = options.seconds("connect_timeout", connect_timeout)
        self._hedge_after_s = options.seconds("hedge_after", hedge_after)
        self._warn_if_cut = check_length and not ignore_all_checks
        self._pair_separator = check_separator(pair_separator)
        self._is_closed = False
        self._process = self._new_process()
        self._processes = {os.getpid(): self._process}  # a fork's parent's are kept, untouched
        try:
            if not ignore_all_checks:
                self._welcome()
                if show_server_config:
                    self._print_config()
        except BaseException:
            self.close()
            raise

    @property
    def server_status(self) -> dict[str, Any]:
        """The server's settings, statistics, `state` and `workers`; of several, one's."""
        with self._connections().connection(self._timeout_s) as connection:
            call = StatusCall(self._timeout_s)
            connection.wait_for(call, lambda fleet, now: fleet.request_status(call, now))
        call.raise_error()
        return dict(call.status)

    @property
    def server_statuses(self) -> list[dict[str, Any]]:
        """The status of each server, with its `address`; `state` may be `unreachable`."""
        timeout_s = min(self._timeout_s, self._connect_timeout_s)
        calls = [StatusCall(timeout_s) for _ in self.endpoints]

        def start(fleet: Fleet, now: float) -> None:
            for number, call in enumerate(calls):
                fleet.request_status(call, now, number)

        with self._connections().connection(self._timeout_s) as connection:
            connection.wait_for_all(calls, start)
        return statuses(self.endpoints, calls)

    @property
    def server_config(self) -> dict[str, Any]:
        """The server's settings: its status without what changes."""
        status = self.server_status
        return {name: value for name, value in status.items() if name not in _CHANGING}

    @property
    def status(self) -> dict[str, Any]:
        """What this client is and has pending, in this process."""
        process = self._own_process()
        pending = process.pending.ids
        return {
            "identity": self.identity,
            "num_request": process.num_requests,
            "num_pending_request": len(pending),
            "pending_request": pending,
            "output_fmt": self.output_fmt,
            "port": self.port,
            "port_out": self.port_out,
            "server_ip": self.ip,
            "servers": [str(endpoint) for endpoint in self.endpoints],
            "client_version": __version__,
            "timeout": self.timeout,
        }

    def wait_ready(self, timeout: float | None = None) -> None:
        """Wait until the server is there and has a worker that can compute.

        Args:
            timeout: milliseconds; None for the client's own `timeout`.

        Raises:
            RequestTimeout: the server was not ready in time.
            ServerUnreachable: it does not let this client in.

        """
        timeout_s = self._timeout_s if timeout is None else options.seconds("timeout", timeout)
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                if self._welcome(max(deadline - time.monotonic(), READY_POLL_S)).state == "ready":
                    return
                error = None
            except (ServerUnreachable, RequestTimeout) as failure:
                if time.monotonic() < deadline:
                    raise
                error = failure
            if time.monotonic() >= deadline:
                raise not_ready(self._where, timeout_s, error) from error
            time.sleep(READY_POLL_S)

    def close(self) -> None:
        """Close all connections; a second close does nothing."""
        self._is_closed = True
        process = self._process
        if process.pid == os.getpid() and not process.pool.is_closed:
            process.close()

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def _where(self) -> str:
        return " or ".join(map(str, self.endpoints))

    @property
    def _timeout_s(self) -> float:
        return options.seconds("timeout", self.timeout)

    def _encode(
        self, texts: Any, encode_options: EncodeOptions, show_progress_bar: bool = False
    ) -> Encoding:
        if encode_options.group is not None:
            check_one_server(self.endpoints)
        call = options.new_call(texts, encode_options, self._timeout_s)
        process = self._own_process()
        process.next_request_id()
        progress = progress_bar(call.total) if show_progress_bar else None
        call.on_progress = progress.update if progress else None
        try:
            member = process.member() if encode_options.group is not None else None
            if member is not None:  # by the connection that would get the copy, so that none comes
                member.wait_for(call, lambda fleet, now: fleet.submit(call, now))
                return options.finished_encoding(call, member.fleet)
            with process.pool.connection(call.timeout_s) as connection:
                connection.wait_for(call, lambda fleet, now: fleet.submit(call, now))
                return options.finished_encoding(call, connection.fleet)
        finally:
            if progress:
                progress.close()

    def _submit(self, pending: PendingCalls, encode_options: EncodeOptions, texts: Any) -> None:
        """Start a call that nobody waits for."""
        if encode_options.group is not None:
            check_one_server(self.endpoints)
        call = options.new_call(texts, encode_options, self._timeout_s)
        process = self._own_process()
        background = process.background()
        pending.submit(process.next_request_id(), call, background)

    def _welcome(self, within_s: float | None = None) -> Welcome:
        """Return a server's last welcome, or a new one that comes within some time."""
        timeout_s = self._timeout_s if within_s is None else within_s
        with self._connections().connection(timeout_s, within_s) as connection:
            if within_s is not None:
                connection.handshake(within_s)
            assert connection.fleet.welcome is not None
            return connection.fleet.welcome

    def _connections(self) -> ConnectionPool:
        return self._own_process().pool

    def _own_process(self) -> ClientProcess:
        pid = os.getpid()
        if self._process.pid != pid:  # a fork: sockets, threads and locks are the parent's
            # several threads may find that at once: one's is all's
            process = self._processes.setdefault(pid, self._new_process())
            if self._is_closed:
                process.pool.close()
            self._process = process
        return self._processes[pid]

    def _new_process(self) -> ClientProcess:
        pool = ConnectionPool(
            self.endpoints,
            self._name,
            self._connect_timeout_s,
            self._max_connections,
            self._hedge_after_s,
        )
        return ClientProcess(pool)

    def _print_config(self) -> None:
        for name, value in sorted(self.server_config.items()):
            print(f"{name:>30} = {value}")  # noqa: T201  # what show_server_config is for
