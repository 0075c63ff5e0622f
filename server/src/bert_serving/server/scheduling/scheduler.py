"""Which request goes to which worker, and when: the whole policy of the broker.

Events in, actions out: `handle` is the only way to change the scheduler, and time comes
in as `now`. So its promises can be tested without a socket, a clock or a worker. It must
not know what a frame, a sentence or an embedding is: payloads and answers pass through.

The promises:

1. every accepted request is answered exactly once, whatever dies, unless it is cancelled
   or its client is lost;
2. what can't be accepted is refused at once;
3. small requests go first but can't starve the rest, and clients share by cost; between express
   batches and the batch that runs, the worker sees to that;
4. an idle worker gets work at once, filled across clients up to its budget, or to its share of
   what waits where others are idle too, unless all that waits is of clients that are held; one
   that computes large requests and takes express batches gets small ones at once as well, as one
   such batch at a time;
5. expired and cancelled requests are never sent to a worker;
6. what a lost worker had goes first again; a request that was in hand when two died is
   tried alone, and when a third dies it fails alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bert_serving.server.scheduling import events
from bert_serving.server.scheduling.costs import CostModel
from bert_serving.server.scheduling.counters import Counters
from bert_serving.server.scheduling.events import Action, Event, SchedulerLimits, Worker
from bert_serving.server.scheduling.ledger import Ledger
from bert_serving.server.scheduling.queues import SUSPECT_AFTER, Request, RequestQueue
from bert_serving.server.scheduling.workers import WorkerPool, WorkerState

EXPRESS_SHARE = 0.25
"""Of a worker's budget, the most tokens of an express batch: the next one waits no longer."""

EXPRESS_TOKENS = 256
"""But so many it may have, if the budget does: between two express batches a layer of large
requests is computed, and a worker with a small budget could not keep up with small ones."""

LEAST_SHARE_TOKENS = 128
"""Of what waits, so much goes to one idle worker before the next one gets any: a batch costs
something beside its tokens, of which 128 reach two thirds of the best rate on a CPU (measured)."""


class Scheduler:
    """The broker's policy, with everything that it remembers.

    Args:
        limits: the settings.
        first_batch: batches are numbered from here on. A broker that takes a dead one's place
            must begin elsewhere: a worker may still answer what that one has sent.

    """

    def __init__(self, limits: SchedulerLimits, first_batch: int = 0) -> None:
        self.counters = Counters()
        self._limits = limits
        self._costs = CostModel()
        self._ledger = Ledger(limits)
        self._queue = RequestQueue(limits.priority_batch_size)
        self._pool = WorkerPool(limits.max_batches_per_worker)
        self._is_draining = False
        self._batch_ids = first_batch
        self._now = 0.0
        self._actions: list[Action] = []
        self._on: dict[type, Callable[[Any], None]] = {
            events.RequestArrived: self._on_request_arrived,
            events.RequestsArrived: self._on_requests_arrived,
            events.RequestsCancelled: self._on_requests_cancelled,
            events.ClientLost: self._on_client_lost,
            events.ClientHeld: self._on_client_held,
            events.ClientReleased: self._on_client_released,
            events.WorkerReady: self._on_worker_ready,
            events.WorkerRetired: self._on_worker_retired,
            events.WorkerLost: self._on_worker_lost,
            events.WorkerBusy: self._on_worker_busy,
            events.BatchAnswered: self._on_batch_answered,
            events.DrainStarted: self._on_drain_started,
            events.Stopped: self._on_stopped,
            events.TimePassed: self._on_time_passed,
        }

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take in what happened; returns what to do about it, in order.

        `now` never goes back. Deadlines are looked at first, so that nothing expired is
        sent or delivered; stuck workers after the event, which may be a sign of theirs.
        """
        self._now = now
        actions = self._actions = []
        for request in self._ledger.expired(now):
            self._fail(request, "deadline_exceeded", "the request's time was up")
        self._on[type(event)](event)
        self._report_stuck_workers()
        self._dispatch()
        return actions

    def next_wakeup(self) -> float | None:
        """When `TimePassed` is due; None while nothing can become due."""
        deadline = self._ledger.next_deadline()
        timeout = self._pool.next_timeout(self._limits.batch_timeout_s)
        if deadline is None or timeout is None:
            return timeout if deadline is None else deadline
        return min(deadline, timeout)

    @property
    def is_idle(self) -> bool:
        """Nothing that was accepted is unanswered."""
        return not self._ledger.requests

    def has_open(self, client: events.Client) -> bool:
        """Whether a client has something unanswered."""
        return self._ledger.has_open(client)

    @property
    def is_draining(self) -> bool:
        """Nothing is accepted any more."""
        return self._is_draining

    @property
    def queued_requests(self) -> int:
        """Requests that no worker has in hand."""
        return self._queue.requests

    @property
    def queued_rows(self) -> int:
        """Rows that no worker has in hand."""
        return self._queue.rows

    @property
    def queued_bytes(self) -> int:
        """Bytes that no worker has in hand."""
        return self._queue.nbytes

    @property
    def requests_in_hand(self) -> int:
        """Requests that some worker has in hand and that still want an answer."""
        return self._ledger.requests - self._queue.requests

    @property
    def workers(self) -> Mapping[Worker, WorkerState]:
        """The workers that are ready, to be read only."""
        return self._pool.states

    @property
    def tokens_per_byte(self) -> float:
        """The estimate that costs are counted with."""
        return self._costs.tokens_per_byte

    # Requests and clients

    def _on_request_arrived(self, new: events.RequestArrived) -> None:
        """Queue a request or refuse it.

        An id that is still open can't be told from its namesake, nor could the answers:
        both are answered `invalid_request`, so that each message gets its one answer and
        no client ever takes one request's embeddings for another's.
        """
        namesake = self._ledger.find(new.client, new.request_id)
        if namesake is not None:
            message = f"two open requests have the id {new.request_id}; ids must differ"
            self._fail(namesake, "invalid_request", message)
            self._refuse(new, "invalid_request", message)
        elif self._is_draining:
            self._refuse(new, "unavailable", "the server is shutting down; try another one")
        elif not new.ttl_s > 0:
            self._refuse(new, "deadline_exceeded", "the request's time was up when it came")
        elif (refusal := self._ledger.refusal(new)) is not None:
            self._refuse(new, *refusal)
        else:
            self._accept(new)

    def _on_requests_arrived(self, event: events.RequestsArrived) -> None:
        for new in event.requests:
            self._on_request_arrived(new)

    def _accept(self, new: events.RequestArrived) -> None:
        request = Request(
            client=new.client,
            request_id=new.request_id,
            rows=new.rows,
            nbytes=new.nbytes,
            cost=self._costs.estimate(new.rows, new.nbytes),
            arrived_at=self._now,
            deadline=self._now + new.ttl_s,
            payload=new.payload,
            group=new.group,
            other_bytes=new.other_bytes,
        )
        self.counters.accepted += 1
        self._ledger.open(request)
        self._queue.push(request)

    def _refuse(self, new: events.RequestArrived, code: str, message: str) -> None:
        retry_after_s = None
        if code == "overloaded":
            workers = len(self._pool.states)
            retry_after_s = self._costs.retry_after_s(self._ledger.cost, workers)
        self.counters.refused[code] += 1
        self._actions.append(
            events.AnswerError(new.client, new.request_id, code, message, retry_after_s)
        )

    def _on_requests_cancelled(self, event: events.RequestsCancelled) -> None:
        for request_id in event.request_ids:
            request = self._ledger.find(event.client, request_id)
            if request is not None:
                self._cancel(request)

    def _on_client_lost(self, event: events.ClientLost) -> None:
        for request in self._ledger.requests_of(event.client):
            self._cancel(request)
        self._queue.release(event.client)

    def _on_client_held(self, event: events.ClientHeld) -> None:
        self._queue.hold(event.client)

    def _on_client_released(self, event: events.ClientReleased) -> None:
        self._queue.release(event.client)

    def _cancel(self, request: Request) -> None:
        self._close(request)
        self.counters.cancelled += 1

    def _fail(self, request: Request, code: str, message: str) -> None:
        self._close(request)
        self.counters.failed[code] += 1
        self._actions.append(events.AnswerError(request.client, request.request_id, code, message))

    def _close(self, request: Request) -> None:
        if request.is_queued:
            self._queue.remove(request)
        self._ledger.close(request)

    # Workers

    def _on_worker_ready(self, ready: events.WorkerReady) -> None:
        self._lose(ready.worker)  # one that says so twice has started anew
        self._costs.max_row_tokens = ready.max_row_tokens
        self._pool.add(ready)

    def _on_worker_retired(self, event: events.WorkerRetired) -> None:
        state = self._pool.retire(event.worker)
        if state is not None:
            self._end_if_done(state)

    def _end_if_done(self, state: WorkerState) -> None:
        if state.is_retired and not state.batches_in_hand:
            self._actions.append(events.WorkerDone(state.worker))

    def _on_worker_lost(self, event: events.WorkerLost) -> None:
        self._lose(event.worker)

    def _on_worker_busy(self, event: events.WorkerBusy) -> None:
        self._pool.hear(event.worker, self._now)

    def _lose(self, worker: Worker) -> None:
        for request in self._pool.remove(worker):
            if not request.is_open:
                continue
            request.deaths += 1
            if request.deaths > SUSPECT_AFTER:
                message = f"{request.deaths} workers died with this request in hand"
                self._fail(request, "worker_failed", message)
            else:
                self._queue.put_back(request)

    def _on_batch_answered(self, event: events.BatchAnswered) -> None:
        """Deliver a batch's answers; a worker that miscounts them is treated as lost."""
        state = self._pool.states.get(event.worker)
        batch = None if state is None else state.batch(event.batch_id)
        if state is None or batch is None:
            return  # late: the batch was queued again when its worker was lost
        if len(event.answers) != len(batch):
            self._lose(event.worker)
            if not state.is_stuck:
                self._actions.append(events.WorkerStuck(event.worker))
            return
        ran_s = self._pool.take_back(state, event.batch_id, self._now)
        for request, answer in zip(batch, event.answers, strict=True):
            if request.is_open:
                self._deliver(request, answer)
        self._learn(state, batch, event.tokens, ran_s)
        self._end_if_done(state)

    def _deliver(self, request: Request, answer: object) -> None:
        self._ledger.close(request)
        self.counters.delivered += 1
        self._actions.append(
            events.Deliver(request.client, request.request_id, answer, request.group)
        )

    def _learn(
        self, state: WorkerState, batch: list[Request], tokens: Sequence[int], ran_s: float | None
    ) -> None:
        """Correct the costs by what a batch was; rows that were all truncated teach nothing."""
        all_rows = all_tokens = 0
        known_rows = known_nbytes = known_tokens = 0
        max_row_tokens = self._costs.max_row_tokens
        for request, count in zip(batch, tokens, strict=False):
            all_rows += request.rows
            all_tokens += count
            if 0 < count < request.rows * max_row_tokens:
                known_rows += request.rows
                known_nbytes += request.nbytes
                known_tokens += count
        state.batches_served += 1
        state.rows_served += all_rows
        state.tokens_served += all_tokens
        self._costs.learn_size(known_rows, known_nbytes, known_tokens)
        if ran_s is not None and all_tokens:
            self._costs.learn_rate(all_tokens, ran_s)

    def _report_stuck_workers(self) -> None:
        while stuck := self._pool.find_stuck(self._limits.batch_timeout_s, self._now):
            self._actions.append(events.WorkerStuck(stuck.worker))

    # The rest

    def _on_drain_started(self, _: events.DrainStarted) -> None:
        self._is_draining = True

    def _on_stopped(self, _: events.Stopped) -> None:
        self._is_draining = True
        for request in self._ledger.all_requests():
            self._fail(request, "unavailable", "the server has stopped before the answer was there")

    def _on_time_passed(self, _: events.TimePassed) -> None:
        """Nothing more: `handle` looks at the time whatever happened."""

    def _dispatch(self) -> None:
        """Send batches for as long as there is a request and a worker for it.

        In the queue's order, but for the places of one class: behind large requests there is
        room for large ones, and small ones go by express. Neither class waits for the other
        there: the worker divides its time between them.
        """
        if self._queue.has_suspects or self._pool.isolated is not None:
            self._try_suspect()
        while (head := self._queue.head()) is not None:
            if self._send_class(head.is_small):
                continue
            other = self._queue.first(is_small=not head.is_small)
            if other is None or not self._send_class(other.is_small):
                break

    def _send_class(self, is_small: bool) -> bool:
        """Send a batch that begins with the first request of a class; false if it can't go."""
        state = self._pool.best(is_small=is_small)
        lane = self._pool.best_lane() if is_small else None
        if lane is not None and (state is None or state.load):
            self._send_express(lane)
        elif state is not None:
            self._send_batch(state)
        return lane is not None or state is not None

    def _send_batch(self, state: WorkerState) -> None:
        tokens, rows = self._budget(state), state.max_batch_rows
        if state.has_lane:
            batch = self._queue.take_class(tokens, rows, is_small=False)
        else:
            batch = self._queue.take(tokens, rows, one_class=state.takes_express)
        self._send(state, batch)

    def _budget(self, state: WorkerState) -> float:
        """Return what a worker is to take: no more than its share, if all who are idle get one."""
        idle = self._pool.num_idle
        if idle < 2:
            return state.max_batch_tokens
        share = self._queue.cost / idle
        return min(state.max_batch_tokens, max(share, LEAST_SHARE_TOKENS))

    def _try_suspect(self) -> None:
        """Try one suspect alone; never two at a time, or they could take every worker."""
        if self._pool.trial_is_on:
            return
        if not self._queue.has_suspects:
            self._pool.release()
        elif (state := self._pool.isolate()) is not None:
            self._pool.trial_is_on = True
            self._send(state, [self._queue.take_suspect()])

    def _send_express(self, state: WorkerState) -> None:
        tokens = max(
            EXPRESS_SHARE * state.max_batch_tokens, min(state.max_batch_tokens, EXPRESS_TOKENS)
        )
        batch = self._queue.take_class(tokens, state.max_batch_rows, is_small=True)
        self._send(state, batch, is_express=True)

    def _send(self, state: WorkerState, batch: list[Request], *, is_express: bool = False) -> None:
        self._batch_ids += 1
        self._pool.give(state, self._batch_ids, batch, self._now, is_express=is_express)
        payloads = [request.payload for request in batch]
        queued_s = [self._now - request.arrived_at for request in batch]
        self._actions.append(
            events.Dispatch(
                state.worker,
                self._batch_ids,
                payloads,
                queued_s,
                is_express=is_express,
                is_interruptible=state.opens_lane(batch),
            )
        )
