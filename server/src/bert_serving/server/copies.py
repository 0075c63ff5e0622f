"""Copies of answers that members of groups are still to get.

One batch can answer thousands of requests to a group of a thousand: all these copies at once
would keep the broker from everything else. It must not know what a socket is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from bert_serving.client.group_messages import broadcast_frames

from .groups import Groups, is_result
from .scheduling.events import Deliver


class Copies:
    """Answers that were sent to groups, and the members who are still to get them.

    Args:
        groups: who is in which.

    """

    def __init__(self, groups: Groups) -> None:
        self._groups = groups
        self._waiting: deque[tuple[str, list[bytes], Sequence[Any]]] = deque()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, delivered: Deliver, connection: str) -> None:
        """Have an answer sent to the others of its group; an error is the sender's alone.

        Args:
            delivered: the answer; its group is one.
            connection: the name of the sender's.

        """
        name = delivered.group.name
        members = self._groups.others(name, delivered.client)
        if members and is_result(delivered.answer[0].buffer):
            frames = broadcast_frames(delivered.group, connection, delivered.answer)
            self._waiting.append((name, members[::-1], frames))

    def take(self, most: int) -> Iterator[tuple[bytes, Sequence[Any]]]:
        """Go through the next copies, at most so many; who has left the group gets none."""
        for _ in range(most):
            if not self._waiting:
                return
            name, members, frames = self._waiting[0]
            member = members.pop()
            if not members:
                self._waiting.popleft()
            if self._groups.has(name, member):
                yield member, frames
