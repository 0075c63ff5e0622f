"""Messages between our own processes: the broker and its workers, the supervisor and the others.

Both ends come from the same installation, so the format is ours to change; frames are
made by the client package's codec all the same. A batch is one message: a header, then
every request's frames in a row; its answers come back the same way.

    worker to broker      starting, ready, answers, boot_failed
    broker to worker      batch, stop
    broker to supervisor  bound, ready, worker_stuck, boot_failed, drained
    supervisor to broker  worker_lost, drain, stop
    gateway to supervisor bound, boot_failed
    supervisor to gateway drain, stop
    terminate command     terminate; answered by terminating, then terminated
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from bert_serving.client.errors import MalformedMessage
from bert_serving.client.frames import encode_message

Frame = TypeVar("Frame")


def message(kind: str, **fields: Any) -> list[Any]:
    """Return the frames of a message without buffers."""
    return encode_message({"type": kind, **fields})


def worker_route(worker_id: int, pid: int) -> bytes:
    """Return the ZeroMQ routing id of one life of a worker; its next life has another."""
    return b"worker-%d-%d" % (worker_id, pid)


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

    """

    id: int
    requests: Sequence[Sequence[Any]]
    queued_ms: Sequence[float]
    sent_at: float
    is_express: bool = False

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
        }
        return encode_message(header, [frame for frames in self.requests for frame in frames])

    @classmethod
    def parse(cls, header: Mapping[str, Any], frames: Sequence[Any]) -> Batch:
        """Return the batch that a header and its buffers hold."""
        requests = list(_grouped(frames, header["sizes"]))
        queued_ms, sent_at = header["queued_ms"], header["sent_at"]
        return cls(header["batch"], requests, queued_ms, sent_at, header["is_express"])


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
    def parse(cls, header: Mapping[str, Any], frames: Sequence[Any]) -> Answers:
        """Return the answers that a header and its buffers hold."""
        return cls(header["batch"], list(_grouped(frames, header["sizes"])), header["tokens"])


def _grouped(frames: Sequence[Frame], sizes: Sequence[int]) -> Iterator[Sequence[Frame]]:
    if sum(sizes) != len(frames):
        raise MalformedMessage(f"got {len(frames)} buffers, the header announces {sum(sizes)}")
    start = 0
    for size in sizes:
        yield frames[start : start + size]
        start += size
