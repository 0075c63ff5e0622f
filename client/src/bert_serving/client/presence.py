"""Whether a server is there: it is asked when it owes an answer and says nothing.

No I/O. A hello is what asks, as a broker answers it at once, whatever its workers do. This
notices all ways to be gone alike, within `PROBE_S + LOST_S`: a connection that breaks, a
network that is cut silently, a broker that hangs or is stopped. One that goes on to answer is
asked now and then as well: its connection may be another one, by which only what is new came.
"""

from __future__ import annotations

import math

HELLO_INTERVAL_S = 0.5
PROBE_S = 0.5  # silence before a server that owes an answer is asked whether it is there
PROBE_INTERVAL_S = 1.0
RECHECK_S = 2.0  # without a hello, while it owes an answer, however much it says
MAX_INTERVAL_S = 2.0  # of a server that does not answer at all
FRESH_S = 1.0  # for which a server that owes nothing is taken for the one that it was
LOST_S = 1.5  # silence after it was asked: then it is taken for lost, until its next word


class Presence:
    """What is known of one server's being there."""

    def __init__(self) -> None:
        self.is_lost = False
        self.next_look = math.inf  # nothing is to be said, nor to be noticed, before
        self._heard_at = -math.inf
        self._owes_since = -math.inf
        self._asked_at = math.inf
        self._said_at = -math.inf
        self._unanswered = 0

    def ask(self, now: float) -> None:
        """Say hello soon, as there is a reason to; not more often than now and then."""
        self.next_look = min(self.next_look, max(now, self._said_at + HELLO_INTERVAL_S))

    def ask_now(self, now: float) -> None:
        """Say hello at the next look, which is due."""
        self.next_look = now

    def owes(self, now: float) -> None:
        """Note that it owes an answer from now on; it owed none before."""
        self._owes_since = now
        self.next_look = min(self.next_look, now + PROBE_S)

    def heard(self, now: float) -> None:
        """Note a word from it."""
        self._heard_at = now
        self._asked_at = math.inf
        self._unanswered = 0
        self.is_lost = False

    def is_stale(self, now: float) -> bool:
        """Whether it may be another one by now: it has neither spoken nor been asked of late."""
        return max(self._heard_at, self._said_at) + FRESH_S <= now

    def asked(self, now: float) -> None:
        """Note a hello that was said whether or not it is there."""
        self._said_at = now

    def look(self, now: float, *, owes: bool, is_awaited: bool) -> bool:
        """Return whether to say hello, and find out whether it is lost.

        Args:
            now: the time.
            owes: it has not answered everything.
            is_awaited: its welcome is waited for.

        """
        if now < self.next_look:
            return False
        if self._asked_at + LOST_S <= now:
            self.is_lost = True
        silent_since = max(self._heard_at, self._owes_since)
        if not is_awaited and not owes:
            self.next_look = math.inf
            return False
        asked_last = max(self._said_at, self._owes_since)
        due = min(silent_since + PROBE_S, asked_last + RECHECK_S)
        if not is_awaited and now < due:
            self.next_look = due
            return False
        self._asked_at, self._said_at = min(self._asked_at, now), now
        self._unanswered += 1
        self.next_look = now + self._interval_s(is_awaited=is_awaited)
        if not self.is_lost:
            self.next_look = min(self.next_look, self._asked_at + LOST_S)
        return True

    def _interval_s(self, *, is_awaited: bool) -> float:
        if self.is_lost:  # hellos wait in the socket until there is a connection again
            return min(HELLO_INTERVAL_S * self._unanswered, MAX_INTERVAL_S)
        return HELLO_INTERVAL_S if is_awaited else PROBE_INTERVAL_S
