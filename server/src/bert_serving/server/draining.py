"""How a server ends: what was accepted is worked off, and only then do its processes end."""

from __future__ import annotations

import logging
import time

from . import exit_codes
from .broker_link import BrokerLink
from .children import Children
from .control import ControlSocket
from .worker_protocol import gateway_route

log = logging.getLogger("bert_serving.supervisor")

STOP_TIMEOUT_S = 1.0  # for the broker to answer what is open, and then for the gateways
END_TIMEOUT_S = 5.0  # from being told to end to being killed


class Drain:
    """The end of a server, from when it has begun.

    Args:
        children: the processes that are to end.
        broker: what the broker is told.
        control: what the gateway is told.

    """

    def __init__(self, children: Children, broker: BrokerLink, control: ControlSocket) -> None:
        self._children = children
        self._broker = broker
        self._control = control
        self._deadline: float | None = None
        self._broker_drains = False

    @property
    def has_begun(self) -> bool:
        """Whether nothing more is accepted, or soon will be."""
        return self._deadline is not None

    def begin(self, timeout_s: float) -> None:
        """Have the gateway take no more; zero seconds give up on what is open."""
        log.info("stopping: working off what was accepted")
        self._deadline = time.monotonic() + timeout_s
        if self._children.gateway is not None:
            self._children.gateway.restart_at = None
            self._tell_gateway("drain")

    def is_over(self) -> bool:
        """Return whether all has been worked off, or time is up: the gateway's calls first.

        They go on as requests of a client's that the draining broker would refuse.
        """
        assert self._children.broker is not None
        assert self._deadline is not None
        if not self._children.broker.is_alive:
            return True
        if time.monotonic() >= self._deadline:
            return True
        if not self._broker_drains and not self._children.gateway_answers:
            self._broker_drains = True
            self._broker.tell("drain")
        return False

    def end_children(self) -> None:
        """End every process: one that a draining broker has told may take its time."""
        for child, pid in self._children.take_ended():
            log.debug("%s (process %d) %s", child.name, pid, child.ending)
        broker, gateway = self._children.broker, self._children.gateway
        has_drained = broker is not None and broker.exit_status == exit_codes.OK
        if broker is not None and self._broker.is_bound:
            self._broker.tell("stop")  # answer all that is open: there is no more time
            broker.end(STOP_TIMEOUT_S)
        if gateway is not None and self._children.gateway_answers:
            self._tell_gateway("stop")  # answer with what the broker said last, or an error
            gateway.end(STOP_TIMEOUT_S)
        self._children.end(END_TIMEOUT_S if has_drained else 0.0)

    def _tell_gateway(self, kind: str) -> None:
        gateway = self._children.gateway
        if gateway is not None and gateway.pid is not None:
            self._control.tell(gateway_route(gateway.pid), kind)
