"""Answers that wait for their client: pure, with time as an argument.

A client subscribes and asks over two connections, so its first question may be here, and
answered, before its subscription is: bert-as-service slept a tenth of a second and hoped.
Here an answer is held until its identity is subscribed to, and until its subscribers have
room for it, within a limit of number, bytes and time. Where several have subscribed to one
identity, one that does not read holds up the others: they wait for it for a short time only.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque

from .answers import LegacyAnswer

SUBSCRIBE, UNSUBSCRIBE = b"\x01", b"\x00"  # how what an XPUB socket receives begins
RETRY_S = 0.05
SHARED_HOLD_S = 2.0  # how long subscribers with room wait for one that has none


class Mailbox:
    """Who has subscribed, and the answers that are held.

    Args:
        hold_s: how long an answer is held.
        max_answers: how many are held; beyond that the oldest go first.
        max_bytes: of all that is held, likewise.

    """

    def __init__(self, *, hold_s: float, max_answers: int, max_bytes: int) -> None:
        self.hold_s = hold_s
        self._max_answers = max_answers
        self._max_bytes = max_bytes
        self._topics: Counter[bytes] = Counter()  # how many have subscribed to each
        self._held: OrderedDict[LegacyAnswer, None] = OrderedDict()  # oldest first
        self._queues: dict[bytes, deque[LegacyAnswer]] = {}  # by identity
        self._to_try: deque[bytes] = deque()
        self._blocked: dict[bytes, float] = {}  # when an identity is tried again
        self._full_since: dict[bytes, float] = {}  # since when an identity's oldest has no room
        self._nbytes = 0

    def __len__(self) -> int:
        return len(self._held)

    def is_subscribed(self, identity: bytes) -> bool:
        """Whether somebody gets what is for an identity: a topic is a prefix."""
        return self._num_subscribers(identity) > 0

    def on_subscription(self, message: bytes) -> None:
        """Take in what an XPUB socket has received: one more wants a topic, or one less."""
        kind, topic = message[:1], message[1:]
        if kind == SUBSCRIBE:
            self._topics[topic] += 1
            self._to_try += [identity for identity in self._queues if identity.startswith(topic)]
        elif kind == UNSUBSCRIBE:
            self._topics[topic] -= 1
            if self._topics[topic] <= 0:  # below: it was wanted by nobody
                del self._topics[topic]

    def put(self, answer: LegacyAnswer, now: float) -> None:
        """Take in an answer."""
        answer.since = now
        self._held[answer] = None
        self._nbytes += answer.nbytes
        self._queues.setdefault(answer.identity, deque()).append(answer)
        if answer.identity not in self._blocked:
            self._to_try.append(answer.identity)

    def next_answer(self, now: float) -> LegacyAnswer | None:
        """Return the next answer to send; then say `sent` or `no_room`."""
        for identity in [name for name, at in self._blocked.items() if at <= now]:
            del self._blocked[identity]
            self._to_try.append(identity)
        while self._to_try:
            identity = self._to_try[0]
            if identity in self._queues and self.is_subscribed(identity):
                return self._queues[identity][0]
            self._to_try.popleft()
        return None

    def sent(self, answer: LegacyAnswer) -> None:
        """Note that an answer has gone out."""
        self._remove(answer)

    def no_room(self, answer: LegacyAnswer, now: float) -> None:
        """Note that a subscriber has no room for an answer: it is tried again a little later."""
        self._full_since.setdefault(answer.identity, now)
        self._blocked[answer.identity] = now + RETRY_S
        self._to_try = deque(name for name in self._to_try if name != answer.identity)

    def expired(self, now: float) -> list[LegacyAnswer]:
        """Return the answers that are held no longer.

        They are too old, or too many, or one of several subscribers has had no room for too long.
        """
        expired = []
        while self._held and self._is_over(next(iter(self._held)), now):
            expired.append(next(iter(self._held)))
            self._remove(expired[-1])
        for identity in [name for name in self._full_since if self._is_held_up(name, now)]:
            expired.append(self._queues[identity][0])
            self._remove(expired[-1])
        return expired

    def next_wakeup(self) -> float | None:
        """Return when there is something to do even if nothing arrives."""
        if not self._held:
            return None
        return min([next(iter(self._held)).since + self.hold_s, *self._blocked.values()])

    def _is_over(self, oldest: LegacyAnswer, now: float) -> bool:
        too_many = len(self._held) > self._max_answers or self._nbytes > self._max_bytes
        return too_many or oldest.since + self.hold_s <= now

    def _is_held_up(self, identity: bytes, now: float) -> bool:
        is_over = self._full_since[identity] + SHARED_HOLD_S <= now
        return is_over and self._num_subscribers(identity) > 1

    def _num_subscribers(self, identity: bytes) -> int:
        return sum(self._topics.get(identity[:size], 0) for size in range(len(identity) + 1))

    def _remove(self, answer: LegacyAnswer) -> None:
        """Forget an answer: it is the oldest of its identity, too."""
        del self._held[answer]
        self._nbytes -= answer.nbytes
        self._full_since.pop(answer.identity, None)
        queue = self._queues[answer.identity]
        queue.popleft()
        if not queue:
            del self._queues[answer.identity]
