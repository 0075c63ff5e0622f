"""Broadcast groups: which clients get a copy of what is sent to a group.

Anybody may join, and anybody may send. Both counts are bounded, as members are strangers.
It must not know what a socket is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from bert_serving.client.errors import ProtocolError
from bert_serving.client.frames import Buffer, decode_header

MAX_GROUPS = 1_000
MAX_MEMBERS = 1_000  # of one group


class Groups:
    """The members of each group, by route; a group is there while it has members."""

    def __init__(self, max_groups: int = MAX_GROUPS, max_members: int = MAX_MEMBERS) -> None:
        self._max_groups = max_groups
        self._max_members = max_members
        self._members: dict[str, dict[bytes, None]] = {}  # in the order in which they came
        self._groups: dict[bytes, frozenset[str]] = {}

    def set(self, route: bytes, names: Iterable[str]) -> str | None:
        """Let a client be in these groups and no others; returns why not, if it can't be."""
        wanted = frozenset(names)
        joined = wanted - self._groups.get(route, frozenset())
        if refusal := self._refusal(joined):
            return refusal
        self._leave(route, self._groups.get(route, frozenset()) - wanted)
        for name in joined:
            self._members.setdefault(name, {})[route] = None
        if wanted:
            self._groups[route] = wanted
        else:
            self._groups.pop(route, None)
        return None

    def remove(self, route: bytes) -> None:
        """Forget a client that is gone."""
        self._leave(route, self._groups.pop(route, frozenset()))

    def others(self, name: str, sender: bytes) -> list[bytes]:
        """Return the members of a group without the one that sends."""
        return [route for route in self._members.get(name, ()) if route != sender]

    def has(self, name: str, route: bytes) -> bool:
        """Whether a client is in a group."""
        return route in self._members.get(name, ())

    @property
    def num_groups(self) -> int:
        """How many groups there are."""
        return len(self._members)

    @property
    def num_members(self) -> int:
        """How many members they have; who is in several counts as often."""
        return sum(map(len, self._members.values()))

    def _refusal(self, joined: Collection[str]) -> str | None:
        created = sum(name not in self._members for name in joined)
        if len(self._members) + created > self._max_groups:
            return f"there are {len(self._members)} groups, at most {self._max_groups} can be"
        for name in joined:
            if len(self._members.get(name, ())) >= self._max_members:
                return f"the group {name!r} has {self._max_members} members, it can't have more"
        return None

    def _leave(self, route: bytes, names: Iterable[str]) -> None:
        for name in names:
            members = self._members[name]
            del members[route]
            if not members:
                del self._members[name]


def is_result(header: Buffer) -> bool:
    """Whether an answer, by its header, is one that members get a copy of."""
    try:
        return decode_header(header).get("type") == "result"
    except ProtocolError:  # the sender will find out; the members need not
        return False
