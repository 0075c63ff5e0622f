"""What an operator may ask of a running server: its status, other workers, another model.

A command is a message with an answer that says whether it is accepted; a change of workers is
answered a second time when it has ended. By which door a command comes is not known here, nor
what a change consists of: that is `replacement`'s.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from bert_serving.client import fields as read
from bert_serving.client.admin_messages import MAX_PATH_CHARS, MAX_WORKERS
from bert_serving.client.errors import ProtocolError
from bert_serving.client.frames import Header

from .broker_link import BrokerLink
from .children import Children
from .config import ServerConfig
from .control import Addresses
from .devices import PlacementError, place_workers
from .processes import Child
from .replacement import Step, steps_between
from .roles import WorkerConfig, broker_config, worker_config
from .workforce import Workforce

log = logging.getLogger("bert_serving.supervisor")

REPORT_TIMEOUT_S = 2.0  # the broker's part of a status is left out when it does not come

Answer: TypeAlias = Callable[..., None]
"""Sends whoever asked an answer: its kind, and fields."""


class Refused(Exception):
    """A command can't be obeyed; the message says why."""


class Administration:
    """The commands, and those who wait for an answer to one.

    Attributes:
        config: the server's, as it was changed since its start.

    """

    def __init__(
        self,
        config: ServerConfig,
        addresses: Addresses,
        children: Children,
        broker: BrokerLink,
        workforce: Workforce,
    ) -> None:
        self.config = config
        self._addresses = addresses
        self._children = children
        self._broker = broker
        self._workforce = workforce
        self._started = time.monotonic()
        self._askers: list[tuple[float, Answer]] = []
        self._on: dict[str, Callable[[Header, Answer], None]] = {
            "reload": self._on_reload,
            "scale": self._on_scale,
            "status": self._on_status,
        }

    def knows(self, kind: str) -> bool:
        """Whether a kind of message is a command."""
        return kind in self._on

    def obey(self, kind: str, header: Header, answer: Answer, *, can_change: bool) -> None:
        """Obey a command, or answer why not.

        Args:
            kind: which one.
            header: with its arguments.
            answer: to whoever asks.
            can_change: the server is ready and not about to end.

        """
        try:
            if kind != "status" and not can_change:
                raise Refused("the server is starting, or stopping: its workers are not changed")
            if kind != "status" and self._workforce.change is not None:
                raise Refused(f"another change is under way ({self._workforce.change})")
            self._on[kind](header, answer)
        except (Refused, PlacementError, ProtocolError) as error:
            log.warning("%s was refused: %s", kind, error)
            answer("refused", cause=str(error))

    def on_report(self, report: Mapping[str, Any]) -> None:
        """Answer those who wait for the broker's part of the status."""
        askers, self._askers = self._askers, []
        for _, answer in askers:
            answer("status", status={**self._status(), "broker": dict(report)})

    def advance(self) -> None:
        """Answer those who have waited too long without the broker's part."""
        now = time.monotonic()
        late = [answer for deadline, answer in self._askers if deadline <= now]
        self._askers = [asker for asker in self._askers if asker[0] > now]
        for answer in late:
            answer("status", status={**self._status(), "broker": None})

    def _on_status(self, _: Header, answer: Answer) -> None:
        self._askers.append((time.monotonic() + REPORT_TIMEOUT_S, answer))
        self._broker.tell("report")

    def _on_reload(self, header: Header, answer: Answer) -> None:
        model_dir = self.config.model_dir
        if header.get("model_dir") is not None:
            model_dir = read.name(header, "model_dir", MAX_PATH_CHARS)
        config = replace(self.config, model_dir=model_dir)
        old = self._configs
        new = {n: with_model(worker, model_dir) for n, worker in old.items()}
        log.info("loading %s in every worker anew", model_dir or "the embedded model")
        self._change(steps_between(old, new, all_anew=True), config, answer)

    def _on_scale(self, header: Header, answer: Answer) -> None:
        config = replace(self.config, num_worker=read.integer(header, "num_worker", 1, MAX_WORKERS))
        new = {
            number: worker_config(config, self._addresses, number, placement)
            for number, placement in enumerate(place_workers(config))
        }
        log.info("changing from %d to %d workers", len(self._configs), len(new))
        self._change(steps_between(self._configs, new), config, answer)

    def _change(
        self, steps: Sequence[Step[WorkerConfig]], config: ServerConfig, answer: Answer
    ) -> None:
        answer("accepted", steps=len(steps))

        def on_end(cause: str | None) -> None:
            if cause is None:
                self._adopt(config)
                log.info("the change of workers is done")
                answer("changed")
            else:
                log.error("the change of workers failed: %s", cause)
                answer("failed", cause=cause)

        self._workforce.begin(steps, on_end)

    def _adopt(self, config: ServerConfig) -> None:
        """Have the broker, this one and its next, know of the change."""
        self.config = config
        broker = self._children.broker
        assert broker is not None
        told = broker_config(config, self._addresses, len(self._children.workers))
        broker.config = replace(broker.config, num_worker=told.num_worker, settings=told.settings)
        self._broker.tell("settings", num_worker=told.num_worker, settings=told.settings)

    @property
    def _configs(self) -> dict[int, WorkerConfig]:
        return {number: worker.config for number, worker in self._children.workers.items()}

    def _status(self) -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            "uptime_s": round(time.monotonic() - self._started, 3),
            "model_dir": self.config.model_dir,
            "change": self._workforce.change,
            "processes": [_process(child) for child in self._children],
        }


def with_model(worker: WorkerConfig, model_dir: str | None) -> WorkerConfig:
    """Return what a worker is told that is to load a model."""
    return replace(worker, replica=replace(worker.replica, model_dir=model_dir))


def _process(child: Child[Any]) -> dict[str, Any]:
    return {
        "name": child.name,
        "pid": child.pid,
        "is_ready": child.is_ready,
        "restarts": child.restarts,
        "last_exit_status": child.exit_status,
    }
