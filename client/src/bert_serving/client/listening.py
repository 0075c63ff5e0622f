"""A blocking client in groups: joining, leaving, and reading what others send there."""

from __future__ import annotations

import time
import warnings

from .background import Background
from .broadcasts import Broadcast
from .calls import MembershipCall
from .fleet import Fleet


class BroadcastWarning(UserWarning):
    """Broadcasts were dropped, as they came faster than they were read."""


def join(background: Background, group: str, timeout_s: float) -> None:
    """Be in a group too; when this returns, the server knows."""

    def start(fleet: Fleet, now: float) -> None:
        fleet.set_groups(call, [*_without(fleet, group), group], now)

    call = MembershipCall(timeout_s)
    background.wait_for(call, start)
    call.raise_error()


def leave(background: Background, group: str, timeout_s: float) -> None:
    """Be in a group no more; what came from it before may still be read."""

    def start(fleet: Fleet, now: float) -> None:
        fleet.set_groups(call, _without(fleet, group), now)

    call = MembershipCall(timeout_s)
    background.wait_for(call, start)
    call.raise_error()


def next_broadcast(background: Background, timeout_s: float) -> Broadcast | None:
    """Return the oldest unread broadcast, waiting for one; None if none came in time.

    Raises:
        ServingError: the connection has ended, and nothing is left to read.

    """
    unread = background.fleet.only.broadcasts
    deadline = time.monotonic() + timeout_s
    while True:
        background.wait_until(lambda: bool(unread), deadline - time.monotonic())
        with background.locked():
            dropped, unread.dropped = unread.dropped, 0
            broadcast = unread.take() if unread else None
        warn_if_dropped(dropped, stacklevel=3)
        if broadcast is not None or time.monotonic() >= deadline:
            return broadcast
        if background.is_over:
            assert background.fleet.refusal is not None
            raise background.fleet.refusal


def warn_if_dropped(dropped: int, stacklevel: int) -> None:
    """Warn a listener about broadcasts that it will not get."""
    if dropped:
        warnings.warn(
            f"{dropped} broadcasts were dropped: they came faster than listen() reads",
            BroadcastWarning,
            stacklevel=stacklevel + 1,
        )


def _without(fleet: Fleet, group: str) -> list[str]:
    return [name for name in fleet.only.groups if name != group]
