"""The processes of one server, each in a place of its own: started, and started again.

It knows when a process has ended and when its next life is due. What an end means for the
server, and what the processes say, is the supervisor's to know.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator
from typing import Any

from .processes import Child
from .roles import BrokerConfig, LegacyConfig, WorkerConfig
from .worker_protocol import gateway_route

log = logging.getLogger("bert_serving.supervisor")


class Children:
    """The broker, the workers by number, and the gateway if there is one.

    Attributes:
        successor: a worker that loads, to take another's place or a new one.
        leaving: a worker that has lost its place and works off what it has.

    """

    def __init__(self) -> None:
        self.broker: Child[BrokerConfig] | None = None
        self.workers: dict[int, Child[WorkerConfig]] = {}
        self.gateway: Child[LegacyConfig] | None = None
        self.successor: Child[WorkerConfig] | None = None
        self.leaving: Child[WorkerConfig] | None = None

    def __iter__(self) -> Iterator[Child[Any]]:
        """Go through all places; the broker comes first, as the others talk to it."""
        if self.broker is not None:
            yield self.broker
        yield from self.workers.values()
        for child in (self.successor, self.leaving, self.gateway):
            if child is not None:
                yield child

    def worker_with(self, pid: int) -> Child[WorkerConfig] | None:
        """Return the worker whose present life has a process id."""
        workers = [*self.workers.values(), self.successor, self.leaving]
        return next((worker for worker in workers if worker and worker.pid == pid), None)

    def is_gateway(self, route: bytes) -> bool:
        """Whether a message that came by a route is the present gateway's."""
        pid = None if self.gateway is None else self.gateway.pid
        return pid is not None and route == gateway_route(pid)

    @property
    def gateway_answers(self) -> bool:
        """Whether there is a gateway that can be asked for something."""
        return self.gateway is not None and self.gateway.is_alive and self.gateway.is_ready

    def take_ended(self) -> Iterator[tuple[Child[Any], int]]:
        """Take the processes that have ended out of their places; returns these and who it was."""
        for child in list(self):
            pid = child.take_ended()
            if pid is not None:
                yield child, pid

    def start_due(self, now: float) -> Iterator[Child[Any]]:
        """Begin the lives that are due; returns those that have begun.

        Where the system has no more processes or descriptors to give, another try is due later.
        """
        for child in list(self):
            if child.is_due(now):
                try:
                    child.start()
                except OSError as error:
                    delay_s = restart_later(child, now)
                    log.error(
                        "%s cannot be started: %s: again in %.1f s", child.name, error, delay_s
                    )
                else:
                    yield child

    def end(self, patience_s: float) -> None:
        """End every process; those that have been told to end get so many seconds for it."""
        deadline = time.monotonic() + patience_s
        for child in self:
            child.end(max(deadline - time.monotonic(), 0.0))
        for child in self:
            if child.process is not None:
                child.process.wait()


def restart_later(child: Child[Any], now: float) -> float:
    """Have a child's next life begin later; returns how many seconds there are to it."""
    return child.restart_later(now, random.random())  # noqa: S311  # jitter, not a secret
