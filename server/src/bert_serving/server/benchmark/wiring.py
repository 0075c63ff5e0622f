"""What a server is spoken to by, and whether it answers at all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import zmq.asyncio

from .http_wire import HttpWire
from .legacy_wire import LegacyWire
from .server_process import ServerFailed
from .targets import HTTP, LEGACY, Target
from .wires import CallFailed, NativeWire, Wire

ANSWER_S = 30.0
"""For one sentence, of a server that is said to be up."""

TURN_S = 0.1


def wire_to(
    target: Target,
    context: zmq.asyncio.Context,
    *,
    identity: str,
    layers: Sequence[int] | None = None,
) -> Wire:
    """Return a wire to a server, not yet connected.

    Args:
        target: the server.
        context: for its sockets, if it is one that has any of ZeroMQ.
        identity: what it calls itself to a server of ours.
        layers: what it asks for there; None is the server's own view.

    """
    if target.wire == HTTP:
        return HttpWire(target.host, target.port, target.path)
    if target.wire == LEGACY:
        return LegacyWire(context, target.host, target.port, target.port_out)
    return NativeWire(target.host, target.port, identity=identity, layers=layers)


def check_answering(
    targets: Sequence[Target], check: Callable[[], None], within_s: float = ANSWER_S
) -> None:
    """Ask each of some servers for one vector, all at the same time.

    Args:
        targets: the servers.
        check: called often; what it raises ends it.
        within_s: how long an answer may take.

    Raises:
        ServerFailed: one does not answer; the message names it.

    """
    if targets:
        asyncio.run(_ask(targets, check, within_s))


async def _ask(targets: Sequence[Target], check: Callable[[], None], within_s: float) -> None:
    waiting = {asyncio.create_task(_lack(target, within_s)) for target in targets}
    while waiting:
        check()
        answered, waiting = await asyncio.wait(waiting, timeout=TURN_S)
        if lacks := [lack for task in answered if (lack := task.result()) is not None]:
            raise ServerFailed(lacks[0])


async def _lack(target: Target, within_s: float) -> str | None:
    """Return in what way a server does not answer; None if it does."""
    with zmq.asyncio.Context() as context:
        wire = wire_to(target, context, identity="benchmark")
        try:
            await asyncio.wait_for(wire.encode(["Is anybody there?"]), within_s)
        except CallFailed as error:
            why = f": {error.kind}: {error}"
        except asyncio.TimeoutError:
            why = f" within {within_s:g} s"
        else:
            return None
        finally:
            await wire.close()
    return f"-online_peer {target.name}: no vector from {target.host}:{target.port}{why}"
