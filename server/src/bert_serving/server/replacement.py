"""Changing workers one by one while the others serve: what to do next, and when to give up.

Pure: what happened goes in, what to do comes out. A successor is ready before its predecessor
gets no more work, and that one is gone before the next step begins, so there is one worker
more than usual at a time and never one less. Where a successor can't be had, those that were
changed already go back, so that no two models serve side by side. What a worker's config has
in it is not known here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf
from typing import Generic, TypeAlias, TypeVar

BOOT_TIMEOUT_S = 600.0  # a large model from a slow disk, calibrated

Config = TypeVar("Config")


@dataclass(frozen=True)
class Step(Generic[Config]):
    """One worker is changed: added without an old config, removed without a new one."""

    number: int
    old: Config | None
    new: Config | None

    @property
    def undone(self) -> Step[Config]:
        """The step that takes this one back."""
        return Step(self.number, self.new, self.old)


@dataclass(frozen=True)
class StartSuccessor(Generic[Config]):
    """Start a worker beside the one in its place."""

    number: int
    config: Config


@dataclass(frozen=True)
class DropSuccessor:
    """End the worker that was to take a place."""


@dataclass(frozen=True)
class Install:
    """Give the successor its place; whoever was there works off what it has, and leaves."""

    number: int


@dataclass(frozen=True)
class Remove:
    """Take a worker out of its place: it works off what it has, and leaves."""

    number: int


@dataclass(frozen=True)
class EndLeaver:
    """End the worker that was to leave: it takes too long."""


@dataclass(frozen=True)
class Finished:
    """All is done; or it failed, for this cause, and all is as it was if that could be had."""

    cause: str | None


Action: TypeAlias = (
    "StartSuccessor[Config] | DropSuccessor | Install | Remove | EndLeaver | Finished"
)


def steps_between(
    old: Mapping[int, Config], new: Mapping[int, Config], *, all_anew: bool = False
) -> list[Step[Config]]:
    """Return the steps from some workers to others: the added first, the removed last.

    With `all_anew`, those whose config stays the same are changed as well.
    """
    added = [Step(n, None, new[n]) for n in sorted(new.keys() - old.keys())]
    both = sorted(old.keys() & new.keys())
    changed = [Step(n, old[n], new[n]) for n in both if all_anew or old[n] != new[n]]
    removed = [Step(n, old[n], None) for n in sorted(old.keys() - new.keys())]
    return added + changed + removed


class Replacement(Generic[Config]):
    """One change of workers on its way.

    Args:
        steps: in their order.
        leave_timeout_s: how long a worker may work off what it has.
        boot_timeout_s: how long a successor may take to be ready.

    """

    def __init__(
        self,
        steps: Iterable[Step[Config]],
        leave_timeout_s: float,
        boot_timeout_s: float = BOOT_TIMEOUT_S,
    ) -> None:
        self._todo = deque(steps)
        self._done: list[Step[Config]] = []
        self._step: Step[Config] | None = None
        self._leave_timeout_s = leave_timeout_s
        self._boot_timeout_s = boot_timeout_s
        self._boot_deadline = self._leave_deadline = inf
        self._cause: str | None = None

    def __str__(self) -> str:
        """Return how far it is, in words."""
        words = "going back" if self._cause is not None else "changing workers"
        return f"{words}: {len(self._done)} done, {len(self._todo) + 1} to go"

    def begin(self, now: float) -> list[Action[Config]]:
        """Return what to do first."""
        return self._next(now)

    def on_ready(self, now: float) -> list[Action[Config]]:
        """Go on when the successor is ready."""
        step = self._step
        if step is None or self._boot_deadline == inf:
            return []
        self._boot_deadline = inf
        if step.old is None:
            return [Install(step.number), *self._complete(step, now)]
        self._leave_deadline = now + self._leave_timeout_s
        return [Install(step.number)]

    def on_failed(self, cause: str, now: float) -> list[Action[Config]]:
        """Go back when the successor can't be had; if that is what failed, stay as it is."""
        if self._boot_deadline == inf:
            return []
        self._boot_deadline = inf
        if self._cause is not None:
            return [DropSuccessor(), Finished(f"{self._cause}; nor can it be undone: {cause}")]
        self._cause = cause
        undone = [step.undone for step in reversed(self._done) if step.old != step.new]
        self._todo, self._done = deque(undone), []
        return [DropSuccessor(), *self._next(now)]

    def on_left(self, now: float) -> list[Action[Config]]:
        """Go on when the predecessor is gone."""
        if self._step is None or self._leave_deadline == inf:
            return []
        self._leave_deadline = inf
        return self._complete(self._step, now)

    def on_time(self, now: float) -> list[Action[Config]]:
        """Give up what takes too long."""
        if now >= self._boot_deadline:
            return self.on_failed(f"it was not ready within {self._boot_timeout_s:g} s", now)
        if now >= self._leave_deadline:
            self._leave_deadline = now + self._leave_timeout_s  # until it is gone
            return [EndLeaver()]
        return []

    def _complete(self, step: Step[Config], now: float) -> list[Action[Config]]:
        self._done.append(step)
        return self._next(now)

    def _next(self, now: float) -> list[Action[Config]]:
        if not self._todo:
            self._step = None
            return [Finished(self._cause)]
        step = self._step = self._todo.popleft()
        if step.new is None:
            self._leave_deadline = now + self._leave_timeout_s
            return [Remove(step.number)]
        self._boot_deadline = now + self._boot_timeout_s
        return [StartSuccessor(step.number, step.new)]
