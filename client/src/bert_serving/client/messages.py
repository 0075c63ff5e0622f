"""The messages between client and broker, as values with their frames.

Client to broker: `Hello`, `Encode`, `Cancel`, `StatusRequest`.
Broker to client: `Welcome`, `Result`, `ErrorAnswer`, `Status`.
Those of groups are in `group_messages`, those of administration in `admin_messages`.
`protocol` reads what the peer sent back into them. Those that are made for every request
are not frozen: a frozen dataclass takes three times as long to make.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy.typing as npt

from .errors import ServerError, server_error
from .frames import Buffer, Header, array_buffer, describe_array, encode_message
from .view import View

MAX_ID = (1 << 63) - 1
MAX_TTL_MS = 7 * 24 * 3600 * 1000
MAX_ROWS = 1 << 13  # the header of the largest result must stay within MAX_HEADER_BYTES
MAX_VIEWS = 16
MAX_NAME_CHARS = 64
MAX_MESSAGE_CHARS = 4000
DEFAULT_MAX_REQUEST_BYTES = 16 << 20
VIEW_DTYPES = ("<f4", "<f2")


@dataclass(frozen=True)
class Limits:
    """How a client cuts its input, as the server asks for in its welcome.

    Attributes:
        max_rows: rows a request.
        max_bytes: bytes of packed rows a request; a single longer row goes alone.
        window: what a connection keeps in flight, in full requests: at most so many times
            `max_rows` rows and `max_bytes` bytes.
        max_request_bytes: bytes of a request, also of one with a single row; the server
            drops the connection of who sends more.
        workers: how many compute at a time: a call is cut so that each gets a part.
        min_rows: least rows of such a part.

    """

    max_rows: int = 64
    max_bytes: int = 32 << 10
    window: int = 4
    max_request_bytes: int = DEFAULT_MAX_REQUEST_BYTES
    workers: int = 1
    min_rows: int = 1

    def rows_a_request(self, total: int | None) -> int:
        """Return how many rows a request should have, of a call of so many; None: not known."""
        if total is None or self.workers == 1:
            return self.max_rows
        parts = min(self.workers, max(total // self.min_rows, 1))
        return min(-(-total // parts), self.max_rows) or 1


@dataclass(frozen=True)
class Hello:
    """A client's first message; the broker answers with a `Welcome`."""

    client: str

    def to_frames(self) -> list[Any]:
        """Return the frames to send."""
        return encode_message({"type": "hello", "client": self.client})


@dataclass(frozen=True)
class Welcome:
    """What a client must know before it can cut requests and allocate arrays.

    Attributes:
        server: name and version of the server.
        state: `starting`, `ready`, or `draining`.
        limits: how to cut requests.
        default_view: what an open field of a view means; only its `dims` may be open.
        model: `name`, `architecture`, `num_layers`, `hidden_size`, `max_length`, and more;
            empty while the server is starting.
        connection: another one than before says that what was open before will not be
            answered; empty if the server does not say.

    """

    server: str
    state: str
    limits: Limits
    default_view: View
    model: Mapping[str, Any]
    connection: str = ""

    def to_frames(self) -> list[Any]:
        """Return the frames to send."""
        limits = self.limits
        header = {
            "type": "welcome",
            "server": self.server,
            "state": self.state,
            "max_rows": limits.max_rows,
            "max_bytes": limits.max_bytes,
            "window": limits.window,
            "default_view": self.default_view.to_wire(),
            "model": dict(self.model),
        }
        if limits.max_request_bytes != DEFAULT_MAX_REQUEST_BYTES:
            header["max_request_bytes"] = limits.max_request_bytes
        if limits.workers > 1:
            header["workers"], header["min_rows"] = limits.workers, limits.min_rows
        if self.connection:
            header["connection"] = self.connection
        return encode_message(header)


@dataclass(slots=True)
class GroupPart:
    """Which part of which call a request is, for the members of a group that get a copy.

    Attributes:
        name: the group's.
        sender: who sends it, for people.
        call: number of the call, unique on the sender's connection.
        start: the request's first row is this one of the call.
        total: how many rows the call has.

    """

    name: str
    sender: str
    call: int
    start: int
    total: int

    def to_wire(self) -> Header:
        """Return the field `group` of a header."""
        return {
            "name": self.name,
            "sender": self.sender,
            "call": self.call,
            "start": self.start,
            "total": self.total,
        }


@dataclass(slots=True)
class Encode:
    """A small batch of rows and the views wanted of them; answered by one result or error.

    Attributes:
        id: the client's number for it, unique among its connection's open requests.
        rows: how many rows the buffer holds.
        ttl_ms: milliseconds left to answer it.
        views: named views; empty asks for no embedding, only for tokens.
        is_tokenized: the rows are lists of tokens, not texts.
        max_length: tokens a row, special ones included; None is the model's own limit.
        show_tokens: also answer tokens, their ids and their segment ids.
        group: whose members get a copy of the result.
        buffer: the rows, packed by `pack_rows`.

    """

    id: int
    rows: int
    ttl_ms: int
    views: Mapping[str, View]
    buffer: Buffer
    is_tokenized: bool = False
    max_length: int | None = None
    show_tokens: bool = False
    group: GroupPart | None = None

    def to_frames(self) -> list[Any]:
        """Return the frames to send; what has its default value stays off the wire."""
        header: Header = {
            "type": "encode",
            "id": self.id,
            "rows": self.rows,
            "ttl_ms": self.ttl_ms,
            "views": {name: view.to_wire() for name, view in self.views.items()},
        }
        if self.is_tokenized:
            header["is_tokenized"] = True
        if self.max_length is not None:
            header["max_length"] = self.max_length
        if self.show_tokens:
            header["show_tokens"] = True
        if self.group is not None:
            header["group"] = self.group.to_wire()
        return encode_message(header, [self.buffer])


@dataclass(slots=True)
class EncodeEnvelope:
    """What the broker reads of an `Encode`: enough to schedule it, nothing of its meaning."""

    id: int
    rows: int
    ttl_ms: int
    nbytes: int
    group: GroupPart | None = None


@dataclass(frozen=True)
class Cancel:
    """The client no longer wants these requests; they get no answer any more."""

    ids: Sequence[int]

    def to_frames(self) -> list[Any]:
        """Return the frames to send."""
        return encode_message({"type": "cancel", "ids": list(self.ids)})


@dataclass(frozen=True)
class StatusRequest:
    """Asks for the server's status; answered by a `Status` with the same id."""

    id: int

    def to_frames(self) -> list[Any]:
        """Return the frames to send."""
        return encode_message({"type": "status", "id": self.id})


@dataclass(frozen=True)
class Status:
    """The server's settings, statistics, state and workers."""

    id: int
    status: Mapping[str, Any]

    def to_frames(self) -> list[Any]:
        """Return the frames to send."""
        return encode_message({"type": "status", "id": self.id, "status": dict(self.status)})


@dataclass(slots=True)
class ViewArray:
    """One view's values for the rows of one request.

    Attributes:
        values: `[rows, dim]` where the view pools, `[tokens, dim]` where it does not.
        row_splits: for a token-level view, `rows + 1` offsets: row i has the vectors
            `values[row_splits[i]:row_splits[i + 1]]`; None for a pooled one.

    """

    values: npt.NDArray[Any]
    row_splits: Sequence[int] | None = None


@dataclass(slots=True)
class RowTokens:
    """The tokens of a request's rows, flat: row i has the next `n_tokens[i]` of each.

    Attributes:
        texts: the tokens as strings.
        ids: their vocabulary ids, int32 `[tokens]`.
        segment_ids: 0 for the first text of a row, 1 for the second, uint8 `[tokens]`.

    """

    texts: Sequence[str]
    ids: npt.NDArray[Any]
    segment_ids: npt.NDArray[Any]


@dataclass(slots=True)
class Result:
    """The answer to an `Encode`.

    Attributes:
        id: the request's id.
        views: an array for each view asked for.
        n_tokens: how many tokens each row has, special ones included.
        truncated: the rows (by number) that were cut to the maximum length.
        tokens: when asked for.
        queue_ms: milliseconds from the request's arrival to the start of its batch.
        tokenize_ms: milliseconds to tokenize its batch.
        compute_ms: milliseconds to compute its batch.

    """

    id: int
    views: Mapping[str, ViewArray]
    n_tokens: Sequence[int]
    truncated: Sequence[int] = ()
    tokens: RowTokens | None = None
    queue_ms: float = 0.0
    tokenize_ms: float = 0.0
    compute_ms: float = 0.0

    def to_frames(self) -> list[Any]:
        """Return the frames to send: the views' buffers in order, then the tokens'."""
        views: list[Header] = []
        buffers: list[Any] = []
        for name, view in self.views.items():
            description = {"name": name, **describe_array(view.values)}
            if view.row_splits is not None:
                description["row_splits"] = list(view.row_splits)
            views.append(description)
            buffers.append(array_buffer(view.values))
        header: Header = {
            "type": "result",
            "id": self.id,
            "views": views,
            "n_tokens": list(self.n_tokens),
            "truncated": list(self.truncated),
            "queue_ms": self.queue_ms,
            "tokenize_ms": self.tokenize_ms,
            "compute_ms": self.compute_ms,
        }
        if self.tokens is not None:
            header["tokens"] = {
                "ids": describe_array(self.tokens.ids),
                "segment_ids": describe_array(self.tokens.segment_ids),
            }
            buffers.append(msgpack.packb(list(self.tokens.texts)))
            buffers.append(array_buffer(self.tokens.ids))
            buffers.append(array_buffer(self.tokens.segment_ids))
        return encode_message(header, buffers)


@dataclass(slots=True)
class ErrorAnswer:
    """An error: for one request, or (id None) for a message that could not be read."""

    id: int | None
    code: str
    message: str
    retry_after_ms: int | None = None

    def to_frames(self) -> list[Any]:
        """Return the frames to send."""
        header: Header = {"type": "error", "id": self.id, "code": self.code}
        header["message"] = self.message[:MAX_MESSAGE_CHARS]
        if self.retry_after_ms is not None:
            header["retry_after_ms"] = self.retry_after_ms
        return encode_message(header)

    def exception(self) -> ServerError:
        """Return the exception that a client raises for it."""
        return server_error(self.code, self.message, self.id, self.retry_after_ms)
