"""The workers of a running server, and how they are changed: `replacement` says what, this acts.

It starts successors, gives them their places, and has the broker give no more batches to those
that leave. One change at a time.
"""

from __future__ import annotations

import contextlib
import logging
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import TypeAlias

from .broker_link import BrokerLink
from .children import Children
from .processes import Child
from .replacement import (
    Action,
    DropSuccessor,
    EndLeaver,
    Finished,
    Install,
    Remove,
    Replacement,
    StartSuccessor,
    Step,
)
from .roles import WorkerConfig

log = logging.getLogger("bert_serving.supervisor")

KILL_TIMEOUT_S = 5.0
LEAVE_MARGIN_S = 10.0  # beyond the time that its two batches may take

OnEnd: TypeAlias = Callable[[str | None], None]


class Workforce:
    """Who serves, and who comes and leaves.

    Args:
        children: whose workers these are.
        broker: is told who leaves.
        batch_timeout_s: of a batch that a leaving worker still computes.

    """

    def __init__(self, children: Children, broker: BrokerLink, batch_timeout_s: float) -> None:
        self._children = children
        self._broker = broker
        self._leave_timeout_s = 2 * batch_timeout_s + LEAVE_MARGIN_S
        self._replacement: Replacement[WorkerConfig] | None = None
        self._on_end: OnEnd = lambda _: None

    @property
    def change(self) -> str | None:
        """How far a change is, in words; None while there is none."""
        return None if self._replacement is None else str(self._replacement)

    def begin(self, steps: Sequence[Step[WorkerConfig]], on_end: OnEnd) -> None:
        """Begin to change workers; `on_end` is told the cause if it fails, None if it does not."""
        self._replacement = Replacement(steps, self._leave_timeout_s)
        self._on_end = on_end
        self._act(self._replacement.begin(time.monotonic()))

    def abandon(self, cause: str) -> None:
        """Leave a change as far as it is."""
        if self._replacement is not None:
            self._act([DropSuccessor(), Finished(cause)])

    def on_ready(self, worker: Child[WorkerConfig]) -> None:
        """Go on if the worker that is ready is the one that is waited for."""
        if worker is self._children.successor and self._replacement is not None:
            self._act(self._replacement.on_ready(time.monotonic()))

    def on_exit(self, worker: Child[WorkerConfig], cause: str) -> None:
        """Go on if a worker that has ended was to come or to leave."""
        children = self._children
        if worker is children.successor:
            children.successor = None
            if self._replacement is not None:
                why = f"the new {worker.name} {cause}"
                self._act(self._replacement.on_failed(why, time.monotonic()))
        elif worker is children.leaving:
            children.leaving = None
            if self._replacement is not None:
                self._act(self._replacement.on_left(time.monotonic()))

    def advance(self) -> None:
        """Give up what takes too long."""
        if self._replacement is not None:
            self._act(self._replacement.on_time(time.monotonic()))

    def tell_who_leaves(self) -> None:
        """Tell the broker, which may be a new one, who is to get no more batches."""
        leaver = self._children.leaving
        if leaver is not None and leaver.pid is not None:
            self._broker.tell("retire", worker=leaver.config.worker_id, pid=leaver.pid)

    def _act(self, actions: Sequence[Action[WorkerConfig]]) -> None:
        for action in actions:
            if isinstance(action, StartSuccessor):
                self._start_successor(action.number, action.config)
            elif isinstance(action, DropSuccessor):
                self._drop_successor()
            elif isinstance(action, (Install, Remove)):
                self._change_place(action)
            elif isinstance(action, EndLeaver):
                self._end_leaver()
            else:
                self._replacement = None
                self._on_end(action.cause)

    def _start_successor(self, number: int, config: WorkerConfig) -> None:
        successor = Child(f"worker {number}", "worker", config)
        self._children.successor = successor
        try:
            successor.start()
        except OSError as error:
            self.on_exit(successor, f"cannot be started: {error}")
        else:
            log.info("worker %d: its successor, process %s, loads", number, successor.pid)

    def _drop_successor(self) -> None:
        successor, self._children.successor = self._children.successor, None
        if successor is None or successor.process is None:
            return
        successor.end(0.0)
        with contextlib.suppress(subprocess.TimeoutExpired):  # a device may take its time
            successor.process.wait(KILL_TIMEOUT_S)
        self._broker.tell("worker_lost", worker=successor.config.worker_id, pid=successor.pid)

    def _change_place(self, action: Install | Remove) -> None:
        workers, number = self._children.workers, action.number
        leaver = workers.pop(number, None)
        if isinstance(action, Install) and self._children.successor is not None:
            workers[number], self._children.successor = self._children.successor, None
        if leaver is None:
            return
        leaver.restart_at = None
        self._children.leaving = leaver
        if leaver.pid is None:  # between two lives
            self.on_exit(leaver, "")
        else:
            log.info("worker %d, process %d, works off what it has and leaves", number, leaver.pid)
            self.tell_who_leaves()

    def _end_leaver(self) -> None:
        leaver = self._children.leaving
        if leaver is not None:
            log.error("%s takes too long to leave: ending it", leaver.name)
            leaver.end(0.0)
