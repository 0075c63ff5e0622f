"""Which worker holds what, and which of them gets the next batch.

The one with the fewest batches in hand, and among those the one that has been so for
longest: a second batch goes to a worker only when none is idle. At most one worker at a
time is isolated, for a request that may have killed two others: it gets nothing else, and
the rest of the requests keep the rest of the workers. Knows nothing of queues or clients.

A worker that takes express batches has a lane for small requests beside its batches: open
while it computes large ones and has no express batch in hand. Its batches are of one class
each, and behind large requests small ones get to it by the lane alone: behind the batch
that runs they would wait for all of it, in the lane they wait for less.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import chain

from bert_serving.server.scheduling.events import Worker, WorkerReady
from bert_serving.server.scheduling.queues import Request


class WorkerState:
    """What one worker can take, holds and has done.

    Attributes:
        batches: the requests of each batch in hand, by batch id; the first one is running.
        express: likewise, the one that goes ahead of them, if there is one.
        running_since: when it last answered while it had more in hand, or got its first.
        heard_at: that, or when it last gave a sign since.
        is_retired: it gets no more, and is done when it has answered what it has.
        is_stuck: it gave no sign for too long and gets no more; it is about to be lost.

    """

    __slots__ = (
        "batches", "batches_served", "express", "heard_at", "is_retired", "is_stuck",
        "max_batch_rows", "max_batch_tokens", "rows_served", "running_since",
        "takes_express", "tokens_served", "worker",
    )  # fmt: skip

    def __init__(self, ready: WorkerReady) -> None:
        self.worker = ready.worker
        self.max_batch_tokens = ready.max_batch_tokens
        self.max_batch_rows = ready.max_batch_rows
        self.takes_express = ready.takes_express
        self.batches: dict[int, list[Request]] = {}
        self.express: dict[int, list[Request]] = {}
        self.running_since = self.heard_at = 0.0
        self.is_retired = False
        self.is_stuck = False
        self.batches_served = 0
        self.rows_served = 0
        self.tokens_served = 0

    @property
    def batches_in_hand(self) -> int:
        """How many batches it holds."""
        return len(self.batches) + len(self.express)

    @property
    def rows_in_hand(self) -> int:
        """How many rows it holds."""
        return sum(request.rows for request in self.requests_in_hand)

    @property
    def requests_in_hand(self) -> Iterator[Request]:
        """What it holds, in order."""
        for batch in chain(self.batches.values(), self.express.values()):
            yield from batch

    @property
    def load(self) -> int:
        """How many batches a new one would wait for."""
        return len(self.batches) or len(self.express)

    @property
    def has_lane(self) -> bool:
        """Whether small requests should wait for its lane: it computes large ones."""
        running = next(iter(self.batches.values()), None)
        return running is not None and self.opens_lane(running)

    def opens_lane(self, batch: Sequence[Request]) -> bool:
        """Whether express batches may come while a batch is computed."""
        return self.takes_express and not batch[0].is_small

    def batch(self, batch_id: int) -> list[Request] | None:
        """Return the requests of a batch in hand."""
        return self.batches.get(batch_id) or self.express.get(batch_id)


class WorkerPool:
    """The workers, shelved by how many batches they hold.

    Attributes:
        states: every worker that is ready.
        isolated: the one that is, or will be, left alone with a suspect.
        trial_is_on: the isolated one has its suspect in hand.

    """

    __slots__ = ("_lanes", "_running", "_shelves", "isolated", "states", "trial_is_on")

    def __init__(self, max_batches_per_worker: int) -> None:
        self.states: dict[Worker, WorkerState] = {}
        self.isolated: WorkerState | None = None
        self.trial_is_on = False
        self._shelves: list[OrderedDict[Worker, WorkerState]] = [
            OrderedDict() for _ in range(max_batches_per_worker)
        ]
        self._lanes: OrderedDict[Worker, WorkerState] = OrderedDict()  # those that are open
        self._running: OrderedDict[Worker, WorkerState] = OrderedDict()  # longest silent first

    def add(self, ready: WorkerReady) -> None:
        """Take in a worker that is not there yet."""
        state = self.states[ready.worker] = WorkerState(ready)
        self._shelve(state)

    def remove(self, worker: Worker) -> list[Request]:
        """Forget a worker; returns what it had in hand, in order."""
        state = self.states.pop(worker, None)
        if state is None:
            return []
        self._unshelve(state)
        self._running.pop(worker, None)
        if state is self.isolated:
            self.isolated = None
            self.trial_is_on = False
        return list(state.requests_in_hand)

    def retire(self, worker: Worker) -> WorkerState | None:
        """Give a worker nothing more; returns it, if it is there and was not retired yet."""
        state = self.states.get(worker)
        if state is None or state.is_retired:
            return None
        self._unshelve(state)
        state.is_retired = True
        if state is self.isolated and not self.trial_is_on:
            self.isolated = None
        return state

    def best(self, *, is_small: bool = False) -> WorkerState | None:
        """Return the worker that the next batch goes to, if any can take one.

        One of small requests goes to none that has a lane for them.
        """
        for shelf in self._shelves:
            for state in shelf.values():
                if not (is_small and state.has_lane):
                    return state
        return None

    @property
    def num_idle(self) -> int:
        """How many workers hold nothing and can take a batch."""
        return len(self._shelves[0])

    def best_lane(self) -> WorkerState | None:
        """Return the worker that the next express batch goes to, if any can take one."""
        return next(iter(self._lanes.values()), None)

    def give(
        self,
        state: WorkerState,
        batch_id: int,
        batch: list[Request],
        now: float,
        *,
        is_express: bool = False,
    ) -> None:
        """Put a batch in a worker's hand."""
        self._unshelve(state)
        if not state.load:
            self._start(state, now)
        (state.express if is_express else state.batches)[batch_id] = batch
        self._shelve(state)

    def take_back(self, state: WorkerState, batch_id: int, now: float) -> float | None:
        """Take a batch out of a worker's hand; returns the seconds since its last answer.

        None for an answer out of order: it waited, and its worker has answered nothing that
        it was computing. An express batch takes time from the one that runs, so that the
        time of both starts anew: seconds and tokens still add up, and a worker that answers
        does not hang.
        """
        self._unshelve(state)
        was_running = batch_id in state.express or next(iter(state.batches)) == batch_id
        ran_s = now - state.running_since if was_running else None
        del (state.express if batch_id in state.express else state.batches)[batch_id]
        if not state.load:
            self._running.pop(state.worker, None)
        elif was_running:
            self._start(state, now)
        if self.trial_is_on and state is self.isolated:
            self.release()
        self._shelve(state)
        return ran_s

    def isolate(self) -> WorkerState | None:
        """Set an idle worker apart for a suspect: it gets nothing else until `release`.

        With none idle, returns None, and one is kept from more work: it soon will be.
        """
        state = self.best()
        if self.isolated is not None and (state is None or state.load):
            state = self.isolated
        elif state is not None:
            self.release()
            self._unshelve(state)
            self.isolated = state
        return state if state is not None and not state.load else None

    def release(self) -> None:
        """End the isolation, if there is one."""
        state, self.isolated = self.isolated, None
        self.trial_is_on = False
        if state is not None:
            self._shelve(state)

    def hear(self, worker: Worker, now: float) -> None:
        """Note that a worker gets on with its running batch, if it has one."""
        state = self._running.get(worker)
        if state is not None:
            state.heard_at = now
            self._running.move_to_end(worker)

    def next_timeout(self, batch_timeout_s: float) -> float | None:
        """Return when a worker will have computed for too long without a sign."""
        for state in self._running.values():
            return state.heard_at + batch_timeout_s
        return None

    def find_stuck(self, batch_timeout_s: float, now: float) -> WorkerState | None:
        """Return a worker that gave no sign of its running batch for too long; each only once."""
        timeout = self.next_timeout(batch_timeout_s)
        if timeout is None or now < timeout:
            return None
        state = self._running.popitem(last=False)[1]
        state.is_stuck = True
        self._unshelve(state)
        if state is self.isolated and not self.trial_is_on:
            self.isolated = None
        return state

    def _start(self, state: WorkerState, now: float) -> None:
        state.running_since = state.heard_at = now
        if not state.is_stuck:
            self._running[state.worker] = state
            self._running.move_to_end(state.worker)

    def _shelve(self, state: WorkerState) -> None:
        if state.is_stuck or state.is_retired or state is self.isolated:
            return
        load = state.load
        if load < len(self._shelves):
            self._shelves[load][state.worker] = state
        if state.has_lane and not state.express:
            self._lanes[state.worker] = state

    def _unshelve(self, state: WorkerState) -> None:
        load = state.load
        if load < len(self._shelves):
            self._shelves[load].pop(state.worker, None)
        self._lanes.pop(state.worker, None)
