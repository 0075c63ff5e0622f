"""Workers on other machines, as the broker meets them: whether each computes what ours do.

They have started themselves, with options of their own, so what they say is compared: two
models behind one server would answer one text with two embeddings. The supervisor cannot see
their processes; the end of a connection is the end of a worker, which may come again.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any

from bert_serving.client.errors import MalformedMessage
from bert_serving.client.view import View

from .doors.door import Door
from .worker_protocol import remote_route, worker_route

_short = reprlib.repr  # a peer's own words, which may be long

_MAY_DIFFER = {"name", "device", "dtype"}  # a folder's name; what another device computes best in


def difference(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], view: View, their_view: object
) -> str | None:
    """Return in which way another machine's worker would answer otherwise; pure.

    Args:
        ours: the model that is served; empty if none is yet.
        theirs: the model of the worker.
        view: the server's default.
        their_view: the worker's.

    """
    if their_view != view.to_wire():
        return f"its default view is {_short(their_view)}, the server's {view.to_wire()!r}"
    for name in sorted(ours.keys() - _MAY_DIFFER):
        if theirs.get(name) != ours[name]:
            return f"its model has {name} {_short(theirs.get(name))}, the server's {ours[name]!r}"
    return None


def check_route(door: Door | None, route: bytes, header: Mapping[str, Any]) -> None:
    """Raise MalformedMessage for a worker that came by another's route, or another's way."""
    is_remote = door is not None and door.is_guest(route)
    expected = (remote_route if is_remote else worker_route)(header["worker"], header["pid"])
    if route != expected:
        raise MalformedMessage("a worker came by another's route")
