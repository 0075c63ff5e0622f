"""Calls of one client on their way: what each still has to send, and what it waits for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .assembly import Assembly, Embeddings, Encoding
from .chunking import Chunk, RowSource
from .messages import Encode, GroupPart, Limits, Result, Status
from .view import View


class Call:
    """Something a caller waits for; done when it has an error or its answer.

    Attributes:
        timeout_s: longest wait for the next answer.
        deadline: the instant when that wait is over; the agenda moves it.
        error: what the call ended with, if not with an answer.
        on_done: called once, when the call is done.
        watched_in: the agenda's set of calls under way, which a call leaves when it is done.

    """

    def __init__(self, timeout_s: float, on_done: Callable[[], None] | None = None) -> None:
        self.timeout_s = timeout_s
        self.deadline = float("inf")
        self.error: Exception | None = None
        self.is_done = False
        self.on_done = on_done
        self.watched_in: set[Call] | None = None

    def finish(self, error: Exception | None = None) -> None:
        """End the call; a second end is ignored."""
        if self.is_done:
            return
        self.error, self.is_done = error, True
        if self.watched_in is not None:
            self.watched_in.discard(self)
        if self.on_done is not None:
            self.on_done()

    def raise_error(self) -> None:
        """Raise what the call ended with, if it ended with an error."""
        if self.error is not None:
            raise self.error


class StatusCall(Call):
    """A request for the server's status."""

    def __init__(self, timeout_s: float, on_done: Callable[[], None] | None = None) -> None:
        super().__init__(timeout_s, on_done)
        self.status: Mapping[str, Any] = {}

    def take(self, answer: Status) -> None:
        """Take in the answer."""
        self.status = answer.status
        self.finish()


class MembershipCall(Call):
    """A change of the groups that a connection is in.

    Attributes:
        before: those it was in, in case that the server refuses.

    """

    def __init__(self, timeout_s: float, on_done: Callable[[], None] | None = None) -> None:
        super().__init__(timeout_s, on_done)
        self.before: Sequence[str] = ()


@dataclass(slots=True)
class EncodeOptions:
    """What one call wants of each of its rows.

    Attributes:
        views: as in `protocol.Encode`, like the three that follow.
        is_tokenized: rows are tokens.
        max_length: tokens a row.
        show_tokens: answer the tokens as well.
        on_empty: what becomes of a blank row, see `chunking`.
        pair_separator: what makes a pair of one text, see `pairs`.
        group: a broadcast group whose members get a copy.
        sender: who they are told that it comes from.

    """

    views: Mapping[str, View] = field(default_factory=dict)
    is_tokenized: bool = False
    max_length: int | None = None
    show_tokens: bool = False
    on_empty: str = "encode"
    pair_separator: str | None = None
    group: str | None = None
    sender: str = ""


class EncodeCall(Call):
    """One `encode()`: cut into requests as they can be sent, put together as answers come.

    Args:
        source: the rows.
        options: what is wanted of them.
        timeout_s: longest wait for the next answer.
        is_single: the caller passed one text, not a list of one.
        on_done: called once, when the call is done.

    Attributes:
        on_progress: called with the number of rows that each answer brings.
        is_all_cut: every row has gone into a request.
        number: of the call on its connection, for those who get a copy; the session sets it.
        refusal: why a server has last refused a part of it, if there was no answer since.

    """

    def __init__(
        self,
        source: RowSource,
        options: EncodeOptions,
        timeout_s: float,
        *,
        is_single: bool = False,
        on_done: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(timeout_s, on_done)
        self.options = options
        self.is_single = is_single
        self._source = source
        self._assembly = Assembly(
            list(options.views), source.total, show_tokens=options.show_tokens
        )
        self.on_progress: Callable[[int], object] | None = None
        self.is_all_cut = source.is_exhausted
        self.open_requests = 0
        self.number = 0
        self.refusal: Exception | None = None

    @property
    def total(self) -> int | None:
        """How many rows there are; None while that is not known."""
        return self._source.total

    @property
    def last_deadline(self) -> float:
        """The latest instant at which an answer may come: each one before it grants more time."""
        answers_before = max(self.open_requests - 1, 0)
        return self.deadline + (answers_before * self.timeout_s if answers_before else 0)

    def cut(self, limits: Limits) -> Chunk | None:
        """Return the rows of the next request; None when there are no more."""
        chunk = self._source.take(limits)
        self.is_all_cut = self._source.is_exhausted
        if chunk is not None:
            self.open_requests += 1
        return chunk

    def message(self, request_id: int, chunk: Chunk, ttl_ms: int) -> Encode:
        """Return the message that sends a chunk."""
        options = self.options
        return Encode(
            id=request_id,
            rows=chunk.rows,
            ttl_ms=ttl_ms,
            views=options.views,
            buffer=chunk.buffer,
            is_tokenized=options.is_tokenized,
            max_length=options.max_length,
            show_tokens=options.show_tokens,
            group=self._part(chunk) if options.group is not None else None,
        )

    def _part(self, chunk: Chunk) -> GroupPart:
        group, total = self.options.group, self.total
        assert group is not None and total is not None
        return GroupPart(group, self.options.sender, self.number, chunk.start, total)

    def take(self, chunk: Chunk, result: Result) -> None:
        """Take in the answer for a chunk; the last one ends the call."""
        self._assembly.add(chunk.start, chunk.rows, result)
        self.open_requests -= 1
        if self.on_progress is not None:
            self.on_progress(chunk.rows)
        self.finish_if_complete()

    def finish_if_complete(self) -> None:
        """End the call if nothing is left to send or to wait for."""
        if self.open_requests == 0 and self.is_all_cut:
            self.finish()

    def encoding(self, empty: Callable[[str], Embeddings]) -> Encoding:
        """Return the whole answer of a call that is done, or raise what it ended with."""
        self.raise_error()
        return self._assembly.finish(empty)
