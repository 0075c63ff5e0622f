"""The messages of broadcast groups, as values with their frames.

Client to broker and back: `Membership`. Broker to the members of a group: `BroadcastPart`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .frames import encode_message
from .messages import GroupPart, Result

MAX_GROUPS = 64


@dataclass(frozen=True)
class Membership:
    """The groups that a connection wants to be in, all of them; answered by the same when it is.

    Attributes:
        id: the client's number for it, which comes back in the answer.
        groups: their names; none to be in no group any more.

    """

    id: int
    groups: Sequence[str]

    def to_frames(self) -> list[Any]:
        """Return the frames to send."""
        return encode_message({"type": "membership", "id": self.id, "groups": list(self.groups)})


@dataclass(slots=True)
class BroadcastPart:
    """A member's copy of the result of one request that another connection has sent.

    Attributes:
        group: which part of which call it is.
        connection: the sender's; a call's number is unique on it.
        result: what the sender got; its `id` means nothing here.

    """

    group: GroupPart
    connection: str
    result: Result

    def to_frames(self) -> list[Any]:
        """Return the frames to send."""
        return broadcast_frames(self.group, self.connection, self.result.to_frames()[1:])


def broadcast_frames(group: GroupPart, connection: str, result: Sequence[Any]) -> list[Any]:
    """Return the frames of a `BroadcastPart`, whose result is its header and buffers, packed."""
    header = {"type": "broadcast", "group": group.to_wire(), "connection": connection}
    return encode_message(header, result)
