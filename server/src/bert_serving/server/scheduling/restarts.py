"""How long to wait before a process that went down is started again.

Capped, jittered exponential back-off: one that can't live is not restarted in a tight
loop, and those that died of one cause don't all come back in the same instant. Pure: the
time and the jitter are arguments, so it knows no clock, no random numbers, no processes.
"""

from __future__ import annotations

FIRST_DELAY_S = 0.1
MAX_DELAY_S = 10.0
STABLE_AFTER_S = 20.0

_JITTER = 0.25


class RestartPolicy:
    """The back-off of one process.

    The jitter only shortens a delay, so that the longest is a limit that can be relied on.
    """

    __slots__ = ("_delay_s", "_healthy_since", "_max_delay_s")

    def __init__(self, max_delay_s: float = MAX_DELAY_S) -> None:
        self._max_delay_s = max_delay_s
        self._delay_s = FIRST_DELAY_S
        self._healthy_since: float | None = None

    def on_healthy(self, now: float) -> None:
        """Note that the process is up; to say so again changes nothing."""
        if self._healthy_since is None:
            self._healthy_since = now

    def on_exit(self, now: float, jitter: float) -> float:
        """Return how many seconds to wait before the next start.

        Args:
            now: when the process went down.
            jitter: a random number in [0, 1), drawn anew for each call.

        """
        if self._healthy_since is not None and now - self._healthy_since >= STABLE_AFTER_S:
            self._delay_s = FIRST_DELAY_S
        self._healthy_since = None
        delay_s = self._delay_s
        self._delay_s = min(2 * delay_s, self._max_delay_s)
        return delay_s * (1 - _JITTER * jitter)
