"""What can happen to the scheduler, and what it can ask for: plain values, no behaviour.

The scheduler never sees a frame: `payload` is whatever the broker must have at hand to
send a request on, and comes back untouched in the actions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

Client: TypeAlias = bytes
"""The route that a request came by and its answer goes back on."""

Worker: TypeAlias = bytes
"""The route to a worker."""


@dataclass(slots=True)
class RequestArrived:
    """A client sent a request; it is queued, or refused at once.

    `nbytes` are its rows', which say what it costs; `other_bytes` are kept beside them while it
    waits. `group` says who else gets the answer; it comes back with it.
    """

    client: Client
    request_id: int
    rows: int
    nbytes: int
    ttl_s: float
    payload: Any
    group: Any = None
    other_bytes: int = 0


@dataclass(slots=True)
class RequestsArrived:
    """Several requests were there at once: all are queued before any is dispatched."""

    requests: Sequence[RequestArrived]


@dataclass(slots=True)
class RequestsCancelled:
    """A client no longer wants these requests."""

    client: Client
    request_ids: Sequence[int]


@dataclass(slots=True)
class ClientLost:
    """A client's route is gone: whatever it asked for is no longer wanted."""

    client: Client


@dataclass(slots=True)
class ClientHeld:
    """A client is to get nothing more computed for now; what it asks for waits."""

    client: Client


@dataclass(slots=True)
class ClientReleased:
    """A client that was held is served again."""

    client: Client


@dataclass(slots=True)
class WorkerReady:
    """A worker can take batches of up to so many tokens and rows.

    `takes_express` says that it can compute another batch in the middle of one.
    """

    worker: Worker
    max_batch_tokens: int
    max_batch_rows: int
    max_row_tokens: int
    takes_express: bool = False


@dataclass(slots=True)
class WorkerRetired:
    """A worker is to get no more batches, and to be done when it has answered those in hand."""

    worker: Worker


@dataclass(slots=True)
class WorkerLost:
    """A worker is gone, with whatever it had in hand."""

    worker: Worker


@dataclass(slots=True)
class WorkerBusy:
    """A worker has not answered yet, but gets on with what it computes."""

    worker: Worker


@dataclass(slots=True)
class BatchAnswered:
    """A worker answered a batch: one answer a request, in the order of its `Dispatch`.

    `tokens` holds the number of tokens that each request turned out to have (0: unknown).
    """

    worker: Worker
    batch_id: int
    answers: Sequence[Any]
    tokens: Sequence[int]


@dataclass(slots=True)
class DrainStarted:
    """Finish what is there, refuse what comes."""


@dataclass(slots=True)
class Stopped:
    """The end is now: whatever is open is answered that there will be no answer."""


@dataclass(slots=True)
class TimePassed:
    """Nothing happened, but `next_wakeup()` is due."""


Event: TypeAlias = (
    RequestArrived
    | RequestsArrived
    | RequestsCancelled
    | ClientLost
    | ClientHeld
    | ClientReleased
    | WorkerReady
    | WorkerRetired
    | WorkerLost
    | WorkerBusy
    | BatchAnswered
    | DrainStarted
    | Stopped
    | TimePassed
)


@dataclass(slots=True)
class Dispatch:
    """Send a batch to a worker: `payloads[i]` waited `queued_s[i]` seconds.

    An express batch is to be computed at once, in the middle of the one that runs, which is
    interruptible then.
    """

    worker: Worker
    batch_id: int
    payloads: Sequence[Any]
    queued_s: Sequence[float]
    is_express: bool = False
    is_interruptible: bool = True


@dataclass(slots=True)
class Deliver:
    """Send a worker's answer to the client that asked."""

    client: Client
    request_id: int
    answer: Any
    group: Any = None


@dataclass(slots=True)
class AnswerError:
    """Send an error to the client that asked; `code` is a wire code of the error table."""

    client: Client
    request_id: int
    code: str
    message: str
    retry_after_s: float | None = None


@dataclass(slots=True)
class WorkerStuck:
    """A worker holds a batch past its limit: end it; a `WorkerLost` will follow."""

    worker: Worker


@dataclass(slots=True)
class WorkerDone:
    """A retired worker has nothing in hand any more: let it end; a `WorkerLost` will follow."""

    worker: Worker


Action: TypeAlias = Dispatch | Deliver | AnswerError | WorkerStuck | WorkerDone


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """The scheduler's settings.

    Attributes:
        max_queue_rows: rows that may wait or be computed at a time, of all clients.
        max_queue_bytes: bytes of them.
        priority_batch_size: a request of at most so many rows is a small one, if it is not
            long (`queues.MAX_SMALL_BYTES`).
        batch_timeout_s: a worker that holds a batch and gives no sign for longer is stuck.
        max_batches_per_worker: batches a worker holds: one running, one waiting. An
            express batch comes on top.

    """

    max_queue_rows: int = 1 << 20
    max_queue_bytes: int = 256 << 20
    priority_batch_size: int = 16
    batch_timeout_s: float = 120.0
    max_batches_per_worker: int = 2
