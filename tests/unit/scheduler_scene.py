"""A scheduler that tests play with, one event at a time."""

from __future__ import annotations

from typing import Any, TypeVar

from bert_serving.server.scheduling.events import (
    Action,
    AnswerError,
    BatchAnswered,
    Dispatch,
    RequestArrived,
    SchedulerLimits,
    TimePassed,
    WorkerLost,
    WorkerReady,
)
from bert_serving.server.scheduling.scheduler import Scheduler

A = TypeVar("A")


class Scene:
    """A scheduler, and the words to play with it in."""

    def __init__(self, **limits: Any) -> None:
        self.scheduler = Scheduler(SchedulerLimits(**limits))
        self.now = 100.0
        self.sent: dict[bytes, list[Dispatch]] = {}

    def play(self, event: Any) -> list[Action]:
        actions = self.scheduler.handle(event, self.now)
        for dispatch in only(actions, Dispatch):
            self.sent.setdefault(dispatch.worker, []).append(dispatch)
        return actions

    def ask(
        self, name: str, *, rows: int = 1, nbytes: int = 40, ttl_s: float = 60.0
    ) -> list[Action]:
        """`name` is a client's letter and a request id: a0, a1, b0."""
        client, request_id = name[0].encode(), int(name[1:])
        return self.play(RequestArrived(client, request_id, rows, nbytes, ttl_s, name))

    def start(self, *names: str, tokens: int = 10_000, takes_express: bool = False) -> list[Action]:
        actions: list[Action] = []
        for name in names:
            ready = WorkerReady(name.encode(), tokens, 1_000, 512, takes_express)
            actions += self.play(ready)
        return actions

    def lose(self, name: str) -> list[Action]:
        self.sent.pop(name.encode(), None)
        return self.play(WorkerLost(name.encode()))

    def answer(self, name: str, tokens: int = 0) -> list[Action]:
        dispatch = self.sent[name.encode()].pop(0)
        answers = [f"answer to {payload}" for payload in dispatch.payloads]
        counts = [tokens] * len(answers)
        return self.play(BatchAnswered(dispatch.worker, dispatch.batch_id, answers, counts))

    def wait(self, seconds: float) -> list[Action]:
        self.now += seconds
        return self.play(TimePassed())


def only(actions: list[Action], kind: type[A]) -> list[A]:
    return [action for action in actions if isinstance(action, kind)]


def sent(actions: list[Action]) -> list[tuple[bytes, list[str]]]:
    return [(action.worker, list(action.payloads)) for action in only(actions, Dispatch)]


def codes(actions: list[Action]) -> list[str]:
    return [action.code for action in only(actions, AnswerError)]
