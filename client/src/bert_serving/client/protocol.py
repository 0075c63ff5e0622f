"""Reading every message between client and broker. `PROTOCOL.md` is the normative text.

The broker reads with `parse_request`, a worker with `parse_encode`, a client with
`parse_answer`; whatever does not fit is `MalformedMessage`.
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, TypeAlias

import numpy.typing as npt

from . import fields
from .admin_messages import Admin, AdminAnswer
from .errors import MalformedMessage
from .frames import Buffer, Header, decode_array, decode_header, decode_message, unpack
from .group_messages import MAX_GROUPS, BroadcastPart, Membership
from .messages import (
    DEFAULT_MAX_REQUEST_BYTES,
    MAX_ID,
    MAX_MESSAGE_CHARS,
    MAX_NAME_CHARS,
    MAX_ROWS,
    MAX_TTL_MS,
    MAX_VIEWS,
    VIEW_DTYPES,
    Cancel,
    Encode,
    EncodeEnvelope,
    ErrorAnswer,
    GroupPart,
    Hello,
    Limits,
    Result,
    RowTokens,
    Status,
    StatusRequest,
    ViewArray,
    Welcome,
)
from .rows import MAX_ROWS_BYTES
from .view import DEFAULT_VIEW, View

Request: TypeAlias = Hello | EncodeEnvelope | Cancel | StatusRequest | Membership | Admin
Answer: TypeAlias = (
    Welcome | Result | ErrorAnswer | Status | Membership | BroadcastPart | AdminAnswer
)


def parse_request(frames: Sequence[Buffer]) -> Request:
    """Return a client's message, as much of it as the broker reads.

    Raises:
        ProtocolError: the frames are no message that a client may send.

    """
    header, buffers = decode_message(frames)
    kind = header.get("type")
    if kind == "encode":
        try:
            return parse_envelope(header, buffers)
        except MalformedMessage as error:
            error.request_id = _readable_id(header)
            raise
    if buffers:
        raise _unexpected_buffers(kind, buffers)
    if kind == "hello":
        return Hello(client=fields.string(header, "client", MAX_NAME_CHARS))
    if kind == "cancel":
        ids = fields.integers(header, "ids", MAX_ID)
        return Cancel(ids)
    if kind == "status":
        return StatusRequest(id=fields.integer(header, "id", 0, MAX_ID))
    if kind in ("membership", "admin"):
        try:
            return Admin.parse(header) if kind == "admin" else _parse_membership(header)
        except MalformedMessage as error:
            error.request_id = _readable_id(header)
            raise
    raise _unknown_type(kind)


def _readable_id(header: Header) -> int | None:
    try:
        return fields.integer(header, "id", 0, MAX_ID)
    except MalformedMessage:
        return None


def parse_envelope(header: Header, buffers: Sequence[Buffer]) -> EncodeEnvelope:
    """Return the part of an `Encode` that scheduling needs."""
    if len(buffers) != 1:
        raise MalformedMessage(f"an encode message has 1 buffer, got {len(buffers)}")
    return EncodeEnvelope(
        id=fields.integer(header, "id", 0, MAX_ID),
        rows=fields.integer(header, "rows", 1, MAX_ROWS),
        ttl_ms=fields.integer(header, "ttl_ms", 0, MAX_TTL_MS),
        nbytes=len(buffers[0]),
        group=_parse_group(header) if "group" in header else None,
    )


def _parse_group(header: Header) -> GroupPart:
    group = fields.mapping(header, "group")
    return GroupPart(
        name=fields.name(group, "name", MAX_NAME_CHARS),
        sender=fields.string(group, "sender", MAX_NAME_CHARS),
        call=fields.integer(group, "call", 0, MAX_ID),
        start=fields.integer(group, "start", 0, MAX_ID),
        total=fields.integer(group, "total", 1, MAX_ID),
    )


def _parse_membership(header: Header) -> Membership:
    groups = header.get("groups")
    if type(groups) is not list or len(groups) > MAX_GROUPS:
        raise MalformedMessage(f"groups must be a list of at most {MAX_GROUPS} names")
    named = [fields.name({"group": group}, "group", MAX_NAME_CHARS) for group in groups]
    return Membership(fields.integer(header, "id", 0, MAX_ID), named)


def parse_encode(header: Header, buffers: Sequence[Buffer]) -> Encode:
    """Return an `Encode` whole, as a worker reads it.

    Raises:
        MalformedMessage: a field is missing or of the wrong type, or a view does not exist.

    """
    envelope = parse_envelope(header, buffers)
    views = header.get("views")
    if type(views) is not dict or len(views) > MAX_VIEWS:
        raise MalformedMessage(f"views must be a map of at most {MAX_VIEWS} views")
    for name, options in views.items():
        if type(name) is not str or len(name) > MAX_NAME_CHARS or type(options) is not dict:
            raise MalformedMessage("views must map short names to maps of options")
    max_length = header.get("max_length")
    if max_length is not None:
        max_length = fields.integer(header, "max_length", 1, MAX_ID)
    return Encode(
        id=envelope.id,
        rows=envelope.rows,
        ttl_ms=envelope.ttl_ms,
        views={name: _parse_view(name, options) for name, options in views.items()},
        buffer=buffers[0],
        is_tokenized=fields.boolean(header, "is_tokenized"),
        max_length=max_length,
        show_tokens=fields.boolean(header, "show_tokens"),
        group=envelope.group,
    )


def _parse_view(name: str, options: Header) -> View:
    try:
        return View.parse(options)
    except ValueError as error:
        raise MalformedMessage(f"view {name!r}: {error}") from None


def parse_answer(frames: Sequence[Buffer]) -> Answer:
    """Return the broker's message.

    Raises:
        ProtocolError: the frames are no message that a broker may send.

    """
    header, buffers = decode_message(frames)
    kind = header.get("type")
    if kind == "result":
        return _parse_result(header, buffers)
    if kind == "broadcast":
        return _parse_broadcast(header, buffers)
    if buffers:
        raise _unexpected_buffers(kind, buffers)
    if kind == "error":
        return _parse_error(header)
    if kind == "welcome":
        return _parse_welcome(header)
    if kind == "status":
        return Status(
            id=fields.integer(header, "id", 0, MAX_ID), status=fields.mapping(header, "status")
        )
    if kind == "membership":
        return _parse_membership(header)
    if kind == "admin":
        return AdminAnswer.parse(header)
    raise _unknown_type(kind)


def _unexpected_buffers(kind: Any, buffers: Sequence[Buffer]) -> MalformedMessage:
    got = f"got {len(buffers)}"
    return MalformedMessage(f"a message of type {reprlib.repr(kind)} has no buffers, {got}")


def _unknown_type(kind: Any) -> MalformedMessage:
    return MalformedMessage(f"unknown message type {reprlib.repr(kind)}")


def _parse_welcome(header: Header) -> Welcome:
    try:
        default_view = View.parse(fields.mapping(header, "default_view"))
    except ValueError as error:
        raise MalformedMessage(f"default_view: {error}") from None
    still_open = DEFAULT_VIEW.to_wire().keys() - default_view.to_wire().keys()
    if still_open:
        raise MalformedMessage(f"default_view leaves {', '.join(sorted(still_open))} open")
    return Welcome(
        server=fields.string(header, "server", MAX_NAME_CHARS),
        state=fields.string(header, "state", MAX_NAME_CHARS),
        limits=Limits(
            max_rows=fields.integer(header, "max_rows", 1, MAX_ROWS),
            max_bytes=fields.integer(header, "max_bytes", 1, MAX_ROWS_BYTES),
            window=fields.integer(header, "window", 1, MAX_ROWS),
            max_request_bytes=(
                fields.integer(header, "max_request_bytes", 1, MAX_ID)
                if "max_request_bytes" in header
                else DEFAULT_MAX_REQUEST_BYTES
            ),
            workers=fields.integer(header, "workers", 1, MAX_ROWS) if "workers" in header else 1,
            min_rows=fields.integer(header, "min_rows", 1, MAX_ROWS) if "min_rows" in header else 1,
        ),
        default_view=default_view,
        model=fields.mapping(header, "model"),
        connection=(
            fields.string(header, "connection", MAX_NAME_CHARS) if "connection" in header else ""
        ),
    )


def _parse_result(header: Header, buffers: Sequence[Buffer]) -> Result:
    descriptions = header.get("views")
    if type(descriptions) is not list or len(descriptions) > MAX_VIEWS:
        raise MalformedMessage(f"views must be a list of at most {MAX_VIEWS} descriptions")
    expected = len(descriptions) + (3 if "tokens" in header else 0)
    if len(buffers) != expected:
        raise MalformedMessage(f"the header describes {expected} buffers, got {len(buffers)}")
    n_tokens = fields.integers(header, "n_tokens", MAX_ID)
    tokens = None
    if "tokens" in header:
        tokens = _row_tokens(header["tokens"], buffers[-3:], sum(n_tokens))
    views: dict[str, ViewArray] = {}
    for description, buffer in zip(descriptions, buffers, strict=False):
        values = decode_array(description, buffer)
        name = fields.string(description, "name", MAX_NAME_CHARS)
        if name in views:
            raise MalformedMessage(f"two views have the name {name!r}")
        views[name] = _view_array(description, values, len(n_tokens))
    return Result(
        id=fields.integer(header, "id", 0, MAX_ID),
        views=views,
        n_tokens=n_tokens,
        truncated=fields.integers(header, "truncated", max(len(n_tokens) - 1, 0)),
        tokens=tokens,
        queue_ms=fields.number(header, "queue_ms"),
        tokenize_ms=fields.number(header, "tokenize_ms"),
        compute_ms=fields.number(header, "compute_ms"),
    )


def _parse_broadcast(header: Header, buffers: Sequence[Buffer]) -> BroadcastPart:
    if not buffers:
        raise MalformedMessage("a broadcast has the result's header as its first buffer")
    return BroadcastPart(
        group=_parse_group(header),
        connection=fields.string(header, "connection", MAX_NAME_CHARS),
        result=_parse_result(decode_header(buffers[0]), buffers[1:]),
    )


def _view_array(description: Header, values: npt.NDArray[Any], rows: int) -> ViewArray:
    if values.ndim != 2:
        raise MalformedMessage(f"a view has 2 axes, got shape {values.shape}")
    if description["dtype"] not in VIEW_DTYPES:
        raise MalformedMessage(f"a view has dtype {' or '.join(VIEW_DTYPES)}, not {values.dtype}")
    if "row_splits" not in description:
        if len(values) != rows:
            raise MalformedMessage(f"a pooled view of {rows} rows has shape {values.shape}")
        return ViewArray(values)
    splits = fields.integers(description, "row_splits", len(values))
    whole = len(splits) == rows + 1 and splits[0] == 0 and splits[-1] == len(values)
    if not whole or any(after < before for before, after in pairwise(splits)):
        raise MalformedMessage("row_splits do not cut the values into the announced rows")
    return ViewArray(values, splits)


def _row_tokens(description: Any, buffers: Sequence[Buffer], total: int) -> RowTokens:
    if type(description) is not dict:
        raise MalformedMessage("tokens must be a map of descriptions")
    ids = decode_array(description.get("ids"), buffers[1])
    segment_ids = decode_array(description.get("segment_ids"), buffers[2])
    if (ids.dtype.str, segment_ids.dtype.str) != ("<i4", "|u1"):
        raise MalformedMessage("token ids must be int32 and segment ids uint8")
    if not ids.shape == segment_ids.shape == (total,):
        raise MalformedMessage(f"ids and segment ids are not {total} each, as n_tokens says")
    texts = unpack(
        buffers[0], "tokens buffer", max_bytes=MAX_ROWS_BYTES, max_depth=1, max_items=total
    )
    if type(texts) is not list or not all(type(text) is str for text in texts):
        raise MalformedMessage("the tokens buffer is no list of strings")
    if len(texts) != total:
        raise MalformedMessage(f"tokens are not {total}, as n_tokens says")
    return RowTokens(texts, ids, segment_ids)


def _parse_error(header: Header) -> ErrorAnswer:
    request_id = header.get("id")
    retry_after_ms = header.get("retry_after_ms")
    return ErrorAnswer(
        id=None if request_id is None else fields.integer(header, "id", 0, MAX_ID),
        code=fields.string(header, "code", MAX_NAME_CHARS),
        message=fields.string(header, "message", MAX_MESSAGE_CHARS),
        retry_after_ms=(
            None
            if retry_after_ms is None
            else fields.integer(header, "retry_after_ms", 0, MAX_TTL_MS)
        ),
    )
