"""The scheduler's promises, against a model that watches every action it takes.

The model knows who asked for what, what each worker holds and how often it was lost. It
makes no decision of its own: it says which actions would break a promise.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import combinations
from math import inf, nan
from operator import attrgetter
from typing import Any, TypeAlias
from unittest.mock import patch

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
)

from bert_serving.server.scheduling import costs, queues, scheduler
from bert_serving.server.scheduling.events import (
    Action,
    AnswerError,
    BatchAnswered,
    ClientHeld,
    ClientLost,
    ClientReleased,
    Deliver,
    Dispatch,
    DrainStarted,
    Event,
    RequestArrived,
    RequestsArrived,
    RequestsCancelled,
    SchedulerLimits,
    TimePassed,
    WorkerBusy,
    WorkerDone,
    WorkerLost,
    WorkerReady,
    WorkerRetired,
    WorkerStuck,
)
from bert_serving.server.scheduling.scheduler import Scheduler

LIMITS = SchedulerLimits(
    max_queue_rows=120, max_queue_bytes=3_000, priority_batch_size=4, batch_timeout_s=8.0
)
CLIENTS = [b"ann", b"bob", b"cy"]
WORKERS = [b"w0", b"w1", b"w2"]
MAX_BATCH_TOKENS, MAX_BATCH_ROWS = 120, 20
MAX_EXPRESS_TOKENS = max(MAX_BATCH_TOKENS / 4, min(MAX_BATCH_TOKENS, 256))
LEAST_SHARE_TOKENS = 20
MAX_SMALL_BYTES = 100
MAX_ROW_TOKENS, LONG_BYTES_PER_TOKEN, TOKENS_PER_CUT_BYTE = 512, 1 / 16, 1 / 4
SIZES: dict[Any, dict[str, Any]] = {
    scheduler: {"LEAST_SHARE_TOKENS": LEAST_SHARE_TOKENS},
    queues: {"MAX_SMALL_BYTES": MAX_SMALL_BYTES},
    costs: {
        "LONG_BYTES_PER_TOKEN": LONG_BYTES_PER_TOKEN,
        "TOKENS_PER_CUT_BYTE": TOKENS_PER_CUT_BYTE,
    },
}
"""So small here that what they decide comes up among few requests of few bytes."""

TINY = 1e-6  # costs are added up in another order

Flow: TypeAlias = tuple[str | bytes, bool]
"""A client or "class", and whether it is about small requests."""

cost, rows = attrgetter("cost"), attrgetter("rows")
choices = st.integers(0, 10**6)
bursts = st.lists(
    st.tuples(
        st.sampled_from(CLIENTS),
        st.sampled_from([1, 1, 1, 1, 2, 2, 3, 4, 5, 5, 5, 6, 7, 9]),
        st.sampled_from([4, 20, 40]),
        st.sampled_from([0.5, 3.0, 3.0, 20.0, 20.0, *[inf] * 6, 0.0, -1.0, nan]),
    ),
    min_size=4,
    max_size=16,
)
seldom = st.sampled_from([False] * 11 + [True])


@dataclass(eq=False)
class Asked:
    """What the model knows of one accepted request."""

    client: bytes
    request_id: int
    rows: int
    nbytes: int
    arrived_at: float
    deadline: float
    serial: int
    deaths: int = 0
    turn: int | None = None
    worker: bytes | None = None

    @property
    def tokens(self) -> float:
        """The estimate; no worker here ever reports anything else, so it never moves."""
        return self.nbytes * 0.25 + 2 * self.rows

    @property
    def cost(self) -> float:
        whole = self.rows * MAX_ROW_TOKENS * LONG_BYTES_PER_TOKEN
        return self.tokens + max(self.nbytes - whole, 0) * TOKENS_PER_CUT_BYTE

    @property
    def is_small(self) -> bool:
        return self.rows <= LIMITS.priority_batch_size and self.nbytes <= MAX_SMALL_BYTES

    @property
    def is_fresh(self) -> bool:
        return self.turn is None and self.worker is None


@dataclass(eq=False)
class Held:
    """What the model knows of one worker."""

    takes_express: bool
    batches: dict[int, list[Asked]] = field(default_factory=dict)
    express: dict[int, list[Asked]] = field(default_factory=dict)
    heard_at: float = 0.0
    is_on_trial: bool = False
    is_stuck: bool = False
    is_retired: bool = False
    is_done: bool = False

    @property
    def in_hand(self) -> dict[int, list[Asked]]:
        return {**self.batches, **self.express}

    @property
    def has_lane(self) -> bool:
        """Whether small requests get to it by express alone: it computes large ones."""
        running = next(iter(self.batches.values()), None)
        return self.takes_express and running is not None and not running[0].is_small


class Promises(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.sizes = ExitStack()
        for module, sizes in SIZES.items():
            self.sizes.enter_context(patch.multiple(module, **sizes))
        self.scheduler = Scheduler(LIMITS)
        self.now = 1_000.0
        self.draining = False
        self.serials = self.turns = 0
        self.open: dict[tuple[bytes, int], Asked] = {}
        self.workers: dict[bytes, Held] = {}
        self.takers_of_express: set[bytes] = set()
        self.held: set[bytes] = set()
        self.batch_ids: set[int] = set()
        self.dead_batches: list[tuple[bytes, int, int]] = []
        self.due: dict[tuple[bytes, int], Asked] = {}
        self.races: dict[tuple[Flow, Flow], dict[Flow, float]] = {}
        self.largest: dict[Flow, float] = {}
        self.answers: dict[tuple[bytes, int], Any] = {}
        self.expected_stuck: set[bytes] = set()
        self.ended = {"accepted": 0, "delivered": 0, "failed": 0, "cancelled": 0, "refused": 0}

    # What happens

    @initialize(first=st.integers(0, 2), takers=st.sets(st.sampled_from(WORKERS)))
    def some_workers_are_ready(self, first: int, takers: set[bytes]) -> None:
        self.takers_of_express = takers
        for worker in WORKERS[:first]:
            self.worker_is_ready(worker)

    @rule(burst=bursts, at_once=st.booleans())
    def requests_arrive(self, burst: list[tuple[bytes, int, int, float]], at_once: bool) -> None:
        new = [
            RequestArrived(client, self.serials + i, rows, rows * row_bytes, ttl_s, None)
            for i, (client, rows, row_bytes, ttl_s) in enumerate(burst)
        ]
        if at_once:
            self.arrive(new)
        else:
            for each in new:
                self.arrive([each])

    @rule(clients=st.permutations(CLIENTS), row_bytes=st.sampled_from([20, 40]))
    def small_requests_flood(self, clients: list[bytes], row_bytes: int) -> None:
        """Two clients send many small requests, while the third has a few large ones."""
        sizes = [(clients[i % 2], 1 + i % 2, row_bytes) for i in range(24)]
        sizes += [(clients[2], 5, 4)] * 4
        self.requests_arrive([(*size, inf) for size in sizes], at_once=True)

    @rule(client=st.sampled_from(CLIENTS), rows=st.sampled_from([60, 61, 120, 121]), happens=seldom)
    def a_huge_request_arrives(self, client: bytes, rows: int, happens: bool) -> None:
        if happens:
            self.arrive([RequestArrived(client, self.serials, rows, rows * 4, inf, None)])

    @precondition(lambda self: self.open)
    @rule(choice=choices)
    def an_id_is_used_twice(self, choice: int) -> None:
        asked = self.pick(list(self.open.values()), choice)
        self.arrive([RequestArrived(asked.client, asked.request_id, 2, 16, 5.0, None)])

    @precondition(lambda self: self.open)
    @rule(choice=choices, also=st.booleans())
    def a_request_is_cancelled(self, choice: int, also: bool) -> None:
        self.settle()
        if not self.open:
            return
        asked = self.pick(list(self.open.values()), choice)
        ids = [
            request_id
            for client, request_id in self.open
            if client == asked.client and (also or request_id == asked.request_id)
        ]
        for request_id in ids:
            del self.open[asked.client, request_id]
        self.ended["cancelled"] += len(ids)
        self.handle(RequestsCancelled(asked.client, [*ids, -1]))

    @rule(client=st.sampled_from(CLIENTS), happens=seldom)
    def a_client_is_lost(self, client: bytes, happens: bool) -> None:
        if not happens:
            return
        self.settle()
        for key in [key for key in self.open if key[0] == client]:
            del self.open[key]
            self.ended["cancelled"] += 1
        self.held.discard(client)
        self.handle(ClientLost(client))

    @rule(client=st.sampled_from(CLIENTS), happens=st.sampled_from([False] * 3 + [True]))
    def a_client_is_held(self, client: bytes, happens: bool) -> None:
        if happens:
            self.held.add(client)
            self.handle(ClientHeld(client))

    @rule(client=st.sampled_from(CLIENTS))
    def a_client_is_released(self, client: bytes) -> None:
        self.held.discard(client)
        self.handle(ClientReleased(client))

    @rule(worker=st.sampled_from(WORKERS), is_known=seldom)
    def a_worker_starts(self, worker: bytes, is_known: bool) -> None:
        if is_known or worker not in self.workers:
            self.worker_is_ready(worker)

    def worker_is_ready(self, worker: bytes) -> None:
        self.lose(worker)
        takes_express = worker in self.takers_of_express
        self.workers[worker] = Held(takes_express)
        self.handle(
            WorkerReady(
                worker,
                MAX_BATCH_TOKENS,
                MAX_BATCH_ROWS,
                MAX_ROW_TOKENS,
                takes_express=takes_express,
            )
        )

    @precondition(lambda self: any(held.in_hand for held in self.workers.values()))
    @rule(choice=choices)
    def a_busy_worker_dies_and_returns(self, choice: int) -> None:
        worker = self.pick([each for each, held in self.workers.items() if held.in_hand], choice)
        self.worker_is_lost(worker)
        self.worker_is_ready(worker)

    @rule(worker=st.sampled_from(WORKERS), happens=seldom)
    def a_worker_stays_away(self, worker: bytes, happens: bool) -> None:
        if happens:
            self.worker_is_lost(worker)

    @precondition(lambda self: len(self.workers) > 1)
    @rule(choice=choices, happens=st.sampled_from([False] * 3 + [True]))
    def a_worker_is_retired(self, choice: int, happens: bool) -> None:
        if happens:
            worker = self.pick(list(self.workers), choice)
            self.workers[worker].is_retired = True
            self.handle(WorkerRetired(worker))

    def worker_is_lost(self, worker: bytes) -> None:
        self.lose(worker)
        self.handle(WorkerLost(worker))

    @precondition(lambda self: any(held.in_hand for held in self.workers.values()))
    @rule(choice=choices, count=st.integers(2, 5), told=st.booleans())
    def batches_are_answered(self, choice: int, count: int, told: bool) -> None:
        for _ in range(count):
            if any(held.in_hand for held in self.workers.values()):
                self.a_batch_is_answered(choice, out_of_order=False, told=told)

    @precondition(lambda self: len(self.takers()) > 1)
    @rule(burst=bursts)
    def a_burst_finds_idle_workers(self, burst: list[tuple[bytes, int, int, float]]) -> None:
        """What waits is answered, so that several workers may share what comes then."""
        for _ in range(len(self.open)):
            if any(held.in_hand for held in self.workers.values()):
                self.a_batch_is_answered(0, out_of_order=False, told=True)
        self.requests_arrive(burst, at_once=True)

    @precondition(lambda self: any(held.express for held in self.workers.values()))
    @rule(choice=choices, told=st.booleans())
    def an_express_batch_is_answered(self, choice: int, told: bool) -> None:
        busy = [worker for worker, held in self.workers.items() if held.express]
        worker = self.pick(busy, choice)
        self.answer(worker, next(iter(self.workers[worker].express)), told)

    @precondition(lambda self: any(held.in_hand for held in self.workers.values()))
    @rule(choice=choices, out_of_order=st.booleans(), told=st.booleans())
    def a_batch_is_answered(self, choice: int, out_of_order: bool, told: bool) -> None:
        busy = [worker for worker, held in self.workers.items() if held.in_hand]
        worker = self.pick(busy, choice)
        self.answer(worker, list(self.workers[worker].in_hand)[-1 if out_of_order else 0], told)

    def answer(self, worker: bytes, batch_id: int, told: bool) -> None:
        held = self.workers[worker]
        if batch_id in held.express or batch_id == next(iter(held.batches)):
            held.heard_at = self.now
        batch = (held.express if batch_id in held.express else held.batches).pop(batch_id)
        held.is_on_trial = False
        self.settle()
        self.answers = {
            (asked.client, asked.request_id): object()
            for asked in batch
            if self.open.get((asked.client, asked.request_id)) is asked
        }
        answers = [self.answers.get((asked.client, asked.request_id)) for asked in batch]
        tokens = [int(asked.tokens) if told else 0 for asked in batch]
        self.dead_batches.append((worker, batch_id, len(batch)))
        self.handle(BatchAnswered(worker, batch_id, answers, tokens))
        assert not self.answers, "a worker's answer was not delivered"

    @precondition(lambda self: any(held.in_hand for held in self.workers.values()))
    @rule(choice=choices, elapsed_s=st.sampled_from([0.6, 3.0, 7.0]))
    def a_worker_says_that_it_gets_on(self, choice: int, elapsed_s: float) -> None:
        self.now += elapsed_s
        worker = self.pick([each for each, held in self.workers.items() if held.in_hand], choice)
        self.workers[worker].heard_at = self.now
        self.handle(WorkerBusy(worker))

    @precondition(lambda self: any(held.in_hand for held in self.workers.values()))
    @rule(choice=choices, count=st.integers(0, 12))
    def a_worker_miscounts_its_answers(self, choice: int, count: int) -> None:
        busy = [worker for worker, held in self.workers.items() if held.in_hand]
        worker = self.pick(busy, choice)
        batch_id, batch = self.pick(list(self.workers[worker].in_hand.items()), choice)
        if count == len(batch):
            count += 1
        if not self.workers[worker].is_stuck:
            self.expected_stuck.add(worker)
        self.settle()
        self.lose(worker)
        self.handle(BatchAnswered(worker, batch_id, [None] * count, [1] * count))

    @precondition(lambda self: self.dead_batches)
    @rule(choice=choices)
    def a_batch_is_answered_late(self, choice: int) -> None:
        worker, batch_id, size = self.pick(self.dead_batches, choice)
        self.handle(BatchAnswered(worker, batch_id, ["late"] * size, [1] * size))

    @rule(elapsed_s=st.sampled_from([0.1, 0.6, 3.0, 9.0]), is_noticed=st.booleans())
    def time_passes(self, elapsed_s: float, is_noticed: bool) -> None:
        """Time that nobody noticed comes with the next event, whatever it is."""
        self.now += elapsed_s
        if is_noticed:
            self.handle(TimePassed())

    @precondition(lambda self: self.scheduler.next_wakeup() is not None)
    @rule()
    def the_wakeup_comes(self) -> None:
        self.now = max(self.now, self.scheduler.next_wakeup() or 0.0)
        self.handle(TimePassed())
        following = self.scheduler.next_wakeup()
        assert following is None or following > self.now, "the broker would spin"

    @precondition(lambda self: self.serials > 30 and not self.draining)
    @rule(happens=seldom)
    def the_server_drains(self, happens: bool) -> None:
        if happens:
            self.draining = True
            self.handle(DrainStarted())

    # What the model does with it

    @staticmethod
    def pick(several: list[Any], choice: int) -> Any:
        return several[choice % len(several)]

    def arrive(self, new: list[RequestArrived]) -> None:
        self.settle()
        codes = [code for each in new for code in self.foresee(each)]
        event = new[0] if len(new) == 1 else RequestsArrived(new)
        refusals = self.handle(event, keep=codes)
        if codes:
            assert [refusal.code for refusal in refusals] == codes
            for refusal in refusals:
                self.check_retry_after(refusal)

    def foresee(self, new: RequestArrived) -> list[str]:
        """Enter a request into the model; returns the errors that it must cause at once."""
        self.serials += 1
        deadline = self.now + new.ttl_s
        asked = Asked(
            new.client, new.request_id, new.rows, new.nbytes, self.now, deadline, self.serials
        )
        new.payload = asked
        codes = self.codes_of_refusal(asked, new.ttl_s)
        namesake = self.open.pop((new.client, new.request_id), None)
        self.ended["failed"] += namesake is not None
        if codes:
            self.ended["refused"] += 1
            return codes
        self.ended["accepted"] += 1
        self.open[new.client, new.request_id] = asked
        for flow, share in self.shares(asked).items():
            self.largest[flow] = max(share, self.largest.get(flow, 0.0))
        self.follow_races()
        return []

    def codes_of_refusal(self, new: Asked, ttl_s: float) -> list[str]:
        """The errors this request must cause at once."""
        if (new.client, new.request_id) in self.open:
            return ["invalid_request", "invalid_request"]
        if self.draining:
            return ["unavailable"]
        if not ttl_s > 0:
            return ["deadline_exceeded"]
        most = (LIMITS.max_queue_rows, LIMITS.max_queue_bytes)
        size = (new.rows, new.nbytes)
        if any(own > limit for own, limit in zip(size, most, strict=True)):
            return ["too_large"]
        every = list(self.open.values())
        mine = [asked for asked in every if asked.client == new.client]
        for attribute, limit in zip(("rows", "nbytes"), most, strict=True):
            own = getattr(new, attribute)
            left = limit - own - sum(getattr(asked, attribute) for asked in every)
            if left < 0:
                return ["overloaded"]
            if mine and own + sum(getattr(asked, attribute) for asked in mine) > left:
                return ["overloaded"]
        return []

    @staticmethod
    def check_retry_after(action: AnswerError) -> None:
        if action.code == "overloaded":
            assert action.retry_after_s is not None
            assert 0.05 <= action.retry_after_s <= 5.0
        else:
            assert action.retry_after_s is None

    def settle(self) -> None:
        """Set apart what is due: whatever happens next, it is answered first."""
        for key in [key for key, asked in self.open.items() if asked.deadline <= self.now]:
            self.due[key] = self.open.pop(key)

    def lose(self, worker: bytes) -> None:
        self.settle()
        held = self.workers.pop(worker, None)
        if held is None:
            return
        for batch_id, batch in held.in_hand.items():
            self.dead_batches.append((worker, batch_id, len(batch)))
            for asked in batch:
                asked.worker = None
                asked.deaths += 1

    def handle(self, event: Event, *, keep: list[str] | None = None) -> list[Any]:
        """Give an event to the scheduler and check each action; returns refusals unchecked."""
        self.settle()
        actions = self.scheduler.handle(event, self.now)
        kept: list[Any] = []
        for action in actions:
            is_due = isinstance(action, AnswerError) and self.key(action) in self.due
            if keep and isinstance(action, AnswerError) and not is_due:
                kept.append(action)
            else:
                self.check(action)
        self.follow_races()
        self.check_all()
        return kept

    def check(self, action: Action) -> None:
        checks: dict[type, Callable[[Any], None]] = {
            Dispatch: self.check_dispatch,
            Deliver: self.check_delivery,
            AnswerError: self.check_error,
            WorkerStuck: self.check_stuck,
            WorkerDone: self.check_done,
        }
        checks[type(action)](action)

    @staticmethod
    def key(answer: Deliver | AnswerError) -> tuple[bytes, int]:
        return answer.client, answer.request_id

    def check_delivery(self, action: Deliver) -> None:
        key = self.key(action)
        assert action.answer is self.answers.pop(key), "an answer went to another request"
        del self.open[key]
        self.ended["delivered"] += 1

    def check_error(self, action: AnswerError) -> None:
        key = self.key(action)
        if action.code == "deadline_exceeded":
            del self.due[key]
        else:
            assert action.code == "worker_failed"
            assert self.open.pop(key).deaths == 3
        self.ended["failed"] += 1

    def check_stuck(self, action: WorkerStuck) -> None:
        if action.worker in self.expected_stuck:
            self.expected_stuck.remove(action.worker)
            return
        held = self.workers[action.worker]
        assert self.is_overdue(held)
        held.is_stuck = True

    def check_done(self, action: WorkerDone) -> None:
        held = self.workers[action.worker]
        assert held.is_retired
        assert not held.in_hand, "a worker was told to end with something in hand"
        assert not held.is_done, "a worker was told to end twice"
        held.is_done = True

    def is_overdue(self, held: Held) -> bool:
        since = held.heard_at + LIMITS.batch_timeout_s
        return bool(held.in_hand) and not held.is_stuck and since <= self.now

    def check_dispatch(self, action: Dispatch) -> None:
        held = self.workers[action.worker]
        batch: list[Asked] = list(action.payloads)
        assert batch
        assert action.batch_id not in self.batch_ids
        self.batch_ids.add(action.batch_id)
        assert not held.is_stuck
        assert not held.is_retired, "a retired worker got a batch"
        assert not held.is_on_trial, "something went to a worker that tries a suspect"
        for asked, queued_s in zip(batch, action.queued_s, strict=True):
            assert self.open.get((asked.client, asked.request_id)) is asked, "not wanted"
            assert asked.worker is None, "it is in hand already"
            assert asked.deadline > self.now
            assert not (asked.is_fresh and asked.client in self.held), "its client is held"
            assert queued_s == self.now - asked.arrived_at
        self.check_choice_of_worker(held)
        assert action.is_interruptible == (held.takes_express and not batch[0].is_small)
        if action.is_express:
            self.check_express(held, batch)
        else:
            assert len(held.batches) < LIMITS.max_batches_per_worker
            assert not (held.has_lane and batch[0].is_small), "it waits behind large ones"
        if any(asked.deaths >= 2 for asked in batch):
            self.check_trial(held, batch)
        else:
            self.check_filling(batch, held, is_express=action.is_express)
            for asked in batch:
                self.check_turn(asked, of_one_class=held.has_lane)
        if not held.in_hand:
            held.heard_at = self.now
        for asked in batch:
            asked.worker = action.worker
        (held.express if action.is_express else held.batches)[action.batch_id] = batch

    @staticmethod
    def check_express(held: Held, batch: list[Asked]) -> None:
        assert held.has_lane, "an express batch is for a worker that computes large requests"
        assert not held.express, "one express batch at a time"
        assert all(asked.is_small for asked in batch)

    def check_choice_of_worker(self, held: Held) -> None:
        loads = [len(each.in_hand) for each in self.takers()]
        if held.in_hand and 0 in loads:
            suspects = [asked for asked in self.queued() if asked.deaths >= 2]
            idle = [each for each in self.takers() if not each.in_hand]
            assert suspects, "an idle worker was passed over"
            assert len(idle) <= 1, "idle workers were passed over"

    def takers(self) -> list[Held]:
        """The workers that may get more work."""
        return [held for held in self.workers.values() if not (held.is_stuck or held.is_retired)]

    def check_trial(self, held: Held, batch: list[Asked]) -> None:
        assert len(batch) == 1
        assert batch[0].deaths == 2
        assert not held.in_hand, "a suspect went to a worker that holds something"
        assert not any(each.is_on_trial for each in self.workers.values())
        held.is_on_trial = True

    def check_filling(self, batch: list[Asked], held: Held, *, is_express: bool) -> None:
        max_tokens = MAX_EXPRESS_TOKENS if is_express else self.share_of(batch)
        if len(batch) > 1:
            is_one_set_apart = any(asked.deaths >= 2 for asked in self.queued())
            most = MAX_BATCH_TOKENS if is_one_set_apart else max_tokens
            assert sum(asked.cost for asked in batch) <= most, "a batch has more than its share"
            assert sum(asked.rows for asked in batch) <= MAX_BATCH_ROWS
        rest = [asked for asked in self.ready() if asked not in batch]
        if held.takes_express:
            assert len({asked.is_small for asked in batch}) == 1, "a batch of two classes"
            if held.has_lane:
                rest = [asked for asked in rest if asked.is_small is batch[0].is_small]
            elif any(asked.is_small is not batch[0].is_small for asked in rest):
                return  # it may have been the other class's turn
        if rest:
            too_long = sum(asked.cost for asked in [*batch, max(rest, key=cost)]) > max_tokens
            too_many = sum(asked.rows for asked in [*batch, max(rest, key=rows)]) > MAX_BATCH_ROWS
            assert too_long or too_many, "a batch was left open that any request would fit in"

    def share_of(self, batch: list[Asked]) -> float:
        """The tokens of a worker's batch, of what waited: equal shares where others are idle."""
        idle = [held for held in self.takers() if not (held.in_hand or held.is_on_trial)]
        waited = sum(asked.cost for asked in {*self.ready(), *batch})
        return min(MAX_BATCH_TOKENS, max(waited / max(len(idle), 1) + TINY, LEAST_SHARE_TOKENS))

    def check_turn(self, asked: Asked, *, of_one_class: bool) -> None:
        """Those put back first, in their first order; then fair between and inside classes.

        Where only one class may go, it is fair inside that class alone.
        """
        before = [
            other.turn
            for other in self.ready()
            if other.turn is not None and (other.is_small is asked.is_small or not of_one_class)
        ]
        if before:
            assert asked.turn == min(before), "what a lost worker had must go first"
        else:
            ours = self.flow(asked.client, asked.is_small)
            assert asked is min(ours, key=lambda other: other.serial), "not first in first out"
            self.follow_races()  # who was answered just now, as its time was up, waits no more
            shares = self.shares(asked)
            if of_one_class:
                del shares["class", asked.is_small]
            self.charge(shares)
            asked.turn = self.turns
            self.turns += 1
        asked.worker = b"taken"
        self.follow_races()

    def queued(self) -> list[Asked]:
        return [asked for asked in self.open.values() if asked.worker is None]

    def ready(self) -> list[Asked]:
        """What waits and may go into a batch with others."""
        return [
            asked
            for asked in self.queued()
            if asked.deaths < 2 and not (asked.is_fresh and asked.client in self.held)
        ]

    def flow(self, client: bytes | None, is_small: bool) -> list[Asked]:
        return [
            asked
            for asked in self.open.values()
            if asked.is_fresh
            and asked.client not in self.held
            and asked.is_small == is_small
            and client in (None, asked.client)
        ]

    # Fairness: Goyal, Vin and Cheng's bound, for each pair of flows that both wait

    @staticmethod
    def shares(asked: Asked) -> dict[Flow, float]:
        """What a request counts in each flow that it is part of."""
        weight = 4 if asked.is_small else 1
        return {
            ("class", asked.is_small): asked.cost / weight,
            (asked.client, asked.is_small): asked.cost,
        }

    def follow_races(self) -> None:
        waiting: list[tuple[Flow, Flow]] = []
        for is_small in (True, False):
            flows = [(client, is_small) for client in CLIENTS if self.flow(client, is_small)]
            waiting += combinations(flows, 2)
        if self.flow(None, True) and self.flow(None, False):
            waiting.append((("class", True), ("class", False)))
        self.races = {pair: self.races.get(pair, dict.fromkeys(pair, 0.0)) for pair in waiting}

    def charge(self, shares: dict[Flow, float]) -> None:
        for flow, share in shares.items():
            for pair, served in self.races.items():
                if flow in pair:
                    served[flow] += share
                    ahead = abs(served[pair[0]] - served[pair[1]])
                    assert ahead <= sum(self.largest[each] for each in pair) + 1e-6, pair

    def check_all(self) -> None:
        """What must hold after each event."""
        assert not self.due, "a deadline came, and no answer"
        self.check_stuck_workers()
        self.check_retired_workers()
        self.check_wakeup()
        self.check_room()
        self.check_numbers()
        self.check_ends()

    def check_stuck_workers(self) -> None:
        assert not self.expected_stuck
        assert not any(self.is_overdue(held) for held in self.workers.values())

    def check_retired_workers(self) -> None:
        for held in self.workers.values():
            assert held.is_done == (held.is_retired and not held.in_hand)

    def check_wakeup(self) -> None:
        deadlines = [asked.deadline for asked in self.open.values() if asked.deadline < inf]
        timeouts = [
            held.heard_at + LIMITS.batch_timeout_s
            for held in self.workers.values()
            if held.in_hand and not held.is_stuck
        ]
        assert self.scheduler.next_wakeup() == min(deadlines + timeouts, default=None)

    def check_room(self) -> None:
        suspects = [asked for asked in self.queued() if asked.deaths >= 2]
        on_trial = [held for held in self.workers.values() if held.is_on_trial]
        room = [
            held
            for held in self.takers()
            if len(held.batches) < LIMITS.max_batches_per_worker and not held.is_on_trial
        ]
        kept_for_a_suspect = 1 if suspects and not on_trial else 0
        if any(not asked.is_small for asked in self.ready()):
            assert len(room) <= kept_for_a_suspect
        if any(asked.is_small for asked in self.ready()):
            assert sum(not held.has_lane for held in room) <= kept_for_a_suspect
            lanes = [
                held
                for held in self.takers()
                if held.has_lane
                and not held.express
                and not held.is_on_trial  # nothing may go there: see check_dispatch
            ]
            assert len(lanes) <= kept_for_a_suspect, "a small request waits beside an open lane"
        if suspects and not on_trial:
            assert all(held.in_hand for held in room), "a suspect waits next to an idle worker"

    def check_numbers(self) -> None:
        queued = self.queued()
        scheduler = self.scheduler
        assert scheduler.queued_requests == len(queued)
        assert scheduler.queued_rows == sum(asked.rows for asked in queued)
        assert scheduler.queued_bytes == sum(asked.nbytes for asked in queued)
        assert scheduler.requests_in_hand == len(self.open) - len(queued)
        assert scheduler.is_idle == (not self.open)
        assert sum(asked.rows for asked in self.open.values()) <= LIMITS.max_queue_rows
        assert sum(asked.nbytes for asked in self.open.values()) <= LIMITS.max_queue_bytes
        assert set(scheduler.workers) == set(self.workers)
        for worker, held in self.workers.items():
            assert list(scheduler.workers[worker].batches) == list(held.batches)
            assert list(scheduler.workers[worker].express) == list(held.express)

    def check_ends(self) -> None:
        counters = self.scheduler.counters
        assert counters.accepted == self.ended["accepted"]
        assert counters.delivered == self.ended["delivered"]
        assert counters.cancelled == self.ended["cancelled"]
        assert sum(counters.failed.values()) == self.ended["failed"]
        assert sum(counters.refused.values()) == self.ended["refused"]
        ends = counters.delivered + counters.cancelled + sum(counters.failed.values())
        assert counters.accepted == ends + len(self.open)

    def teardown(self) -> None:
        """With a worker that works, everything that is still open gets its answer."""
        self.sizes.close()
        for client in CLIENTS:
            self.a_client_is_released(client)
        for worker in WORKERS:
            self.worker_is_lost(worker)
        self.worker_is_ready(WORKERS[0])
        for _ in range(len(self.open)):
            if self.open:
                self.a_batch_is_answered(0, out_of_order=False, told=True)
        assert self.scheduler.is_idle
        assert not self.open


TestPromises = Promises.TestCase
TestPromises.settings = settings(
    max_examples=100,
    stateful_step_count=60,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
