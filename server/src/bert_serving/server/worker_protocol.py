"""Messages between our own processes: the broker and its workers, the supervisor and the others.

Both ends come from the same installation, so the format is ours to change; frames are
made by the client package's codec all the same. A batch is one message: a header, then
every request's frames in a row; its answers come back the same way. So the messages of many
strangers are one of ours, and may have more frames than one of theirs.

    worker to broker      starting, ready, busy, answers, boot_failed
    broker to worker      batch, stop, refused (of another machine's)
    broker to supervisor  bound, worker_ready, ready, worker_stuck, worker_refused, boot_failed,
                          pong, report, admin, drained
    supervisor to broker  ping, report, worker_lost, retire, settings, admin_answer, drain, stop
    gateway to supervisor bound, boot_failed
    supervisor to gateway drain, stop
    terminate command     terminate; answered by terminating, then terminated
    admin command         status; answered by status
                          reload, scale; answered by refused, or accepted, then changed or failed
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, TypeVar

from bert_serving.client import fields as read
from bert_serving.client.errors import MalformedMessage
from bert_serving.client.frames import Buffer, Header, decode_message, encode_message
from bert_serving.client.messages import MAX_ID, MAX_NAME_CHARS, MAX_ROWS, MAX_VIEWS

Frame = TypeVar("Frame")

MAX_BATCH_ROWS = MAX_ROWS
"""However many tokens a worker takes: a batch has no more requests than rows."""

MAX_ANSWER_FRAMES = 1 + MAX_VIEWS + 3  # the header, an array a view, and three for tokens
MAX_FRAMES = 2 + MAX_BATCH_ROWS * MAX_ANSWER_FRAMES
MAX_WORDS_CHARS = 1 << 16  # a cause may be a traceback


def message(kind: str, **fields: Any) -> list[Any]:
    """Return the frames of a message without buffers."""
    return encode_message({"type": kind, **fields})


def read_message(frames: Sequence[Buffer]) -> tuple[str, Header, Sequence[Buffer]]:
    """Return what kind of message frames are, its header, and its buffers.

    Raises:
        ProtocolError: they are none of this protocol.

    """
    header, buffers = decode_message(frames, MAX_FRAMES)
    return read.name(header, "type", MAX_NAME_CHARS), header, buffers


def read_from_worker(frames: Sequence[Buffer]) -> tuple[str, Header, Sequence[Buffer]]:
    """Return a worker's message as `read_message` does, with all fields that it must have.

    A worker may be on another machine: what it says of itself is not believed unseen.

    Raises:
        ProtocolError: no such message.

    """
    kind, header, buffers = read_message(frames)
    for name, check in _FIELDS_OF_A_WORKER.get(kind, {}).items():
        if name not in header:
            raise MalformedMessage(f"a message of type {kind} has {name}, and this one has not")
        check(header, name)
    if kind == "ready":
        read.integer(read.mapping(header, "model"), "max_length", 1, MAX_ID)
    return kind, header, buffers


def _number(header: Header, name: str) -> None:
    read.integer(header, name, 0, MAX_ID)


def _size(header: Header, name: str) -> None:
    read.integer(header, name, 1, MAX_ID)


def _words(header: Header, name: str) -> None:
    read.string(header, name, MAX_WORDS_CHARS)


_IDENTITY = {"worker": _number, "pid": _number, "host": _words, "device": _words}
_FIELDS_OF_A_WORKER: dict[str, dict[str, Callable[[Header, str], object]]] = {
    "starting": {**_IDENTITY},
    "ready": {
        **_IDENTITY,
        "max_batch_tokens": _size,
        "max_batch_rows": _size,
        "takes_express": read.boolean,
    },
    "boot_failed": {"cause": _words},
}


def worker_route(worker_id: int, pid: int) -> bytes:
    """Return the ZeroMQ routing id of one life of a worker; its next life has another."""
    return b"worker-%d-%d" % (worker_id, pid)


def remote_route(worker_id: int, pid: int) -> bytes:
    """Return that of a worker on another machine, where another process may have this id."""
    return b"remote-%d-%d" % (worker_id, pid)


def broker_route(pid: int) -> bytes:
    """Return the ZeroMQ routing id of one life of the broker at the supervisor."""
    return b"broker-%d" % pid


def gateway_route(pid: int) -> bytes:
    """Return the ZeroMQ routing id of one life of a gateway."""
    return b"gateway-%d" % pid


@dataclass(frozen=True)
class Batch:
    """Requests for a worker to compute together.

    Attributes:
        id: the scheduler's number for it.
        requests: each request's frames: header, then its buffer.
        queued_ms: how long each had waited when the batch was sent.
        sent_at: when that was, in seconds of this machine's monotonic clock, which its
            processes share: what a batch waits behind another is waiting too.
        is_express: it is to be computed in the middle of the one that runs.
        is_interruptible: one may come by express while it is computed.

    """

    id: int
    requests: Sequence[Sequence[Any]]
    queued_ms: Sequence[float]
    sent_at: float
    is_express: bool = False
    is_interruptible: bool = True

    def to_frames(self) -> list[Any]:
        """Return the frames to send."""
        sizes = [len(frames) for frames in self.requests]
        header = {
            "type": "batch",
            "batch": self.id,
            "sizes": sizes,
            "queued_ms": list(self.queued_ms),
            "sent_at": self.sent_at,
            "is_express": self.is_express,
            "is_interruptible": self.is_interruptible,
        }
        return encode_message(header, [frame for frames in self.requests for frame in frames])

    @classmethod
    def parse(cls, header: Header, frames: Sequence[Any]) -> Batch:
        """Return the batch that a header and its buffers hold.

        Raises:
            MalformedMessage: they hold none.

        """
        queued_ms = read.numbers(header, "queued_ms")
        return cls(
            id=read.integer(header, "batch", 0, MAX_ID),
            requests=_grouped(header, frames, queued_ms),
            queued_ms=queued_ms,
            sent_at=read.number(header, "sent_at"),
            is_express=read.boolean(header, "is_express"),
            is_interruptible=read.boolean(header, "is_interruptible"),
        )


@dataclass(frozen=True)
class Answers:
    """A worker's answers to one batch.

    Attributes:
        batch_id: the batch.
        answers: each request's answer as frames: header, then buffers; without the version.
        tokens: how many tokens each request turned out to have.

    """

    batch_id: int
    answers: Sequence[Sequence[Any]]
    tokens: Sequence[int]

    def to_frames(self) -> list[Any]:
        """Return the frames to send."""
        header = {
            "type": "answers",
            "batch": self.batch_id,
            "sizes": [len(frames) for frames in self.answers],
            "tokens": list(self.tokens),
        }
        return encode_message(header, [frame for frames in self.answers for frame in frames])

    @classmethod
    def parse(cls, header: Header, frames: Sequence[Any]) -> Answers:
        """Return the answers that a header and its buffers hold.

        Raises:
            MalformedMessage: they hold none.

        """
        tokens = read.integers(header, "tokens", MAX_ID)
        return cls(
            batch_id=read.integer(header, "batch", 0, MAX_ID),
            answers=_grouped(header, frames, tokens),
            tokens=tokens,
        )


def _grouped(
    header: Header, frames: Sequence[Frame], beside: Sequence[object]
) -> list[Sequence[Frame]]:
    """Return frames cut into parts, none of them empty, as many as what the header has beside."""
    sizes = read.integers(header, "sizes", MAX_FRAMES)
    if 0 in sizes or len(sizes) != len(beside) or sum(sizes) != len(frames):
        raise MalformedMessage(
            f"{len(frames)} buffers are not the {len(beside)} parts that the header announces"
        )
    ends = [0, *accumulate(sizes)]
    return [frames[start:end] for start, end in pairwise(ends)]
