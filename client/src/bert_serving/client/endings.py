"""What a call ends with when no server has answered it, in words that say why."""

from __future__ import annotations

from collections.abc import Sequence

from .agenda import Request
from .calls import Call, EncodeCall
from .errors import RequestTimeout, TooLarge, Unavailable
from .messages import Limits
from .session import Session


def time_is_over(call: Call, sessions: Sequence[Session]) -> Exception:
    """Return the error of a call at its deadline: the last refusal, if it has had one."""
    if isinstance(call, EncodeCall) and call.refusal is not None:
        return call.refusal
    where = " or ".join(session.address for session in sessions)
    waited = f"no answer from {where} within {call.timeout_s * 1000:.0f} ms (timeout)"
    welcomes = [session.welcome for session in sessions if session.welcome is not None]
    states = {welcome.state for welcome in welcomes}
    if isinstance(call, EncodeCall) and states == {"draining"}:
        return Unavailable(f"{waited}: the server is stopping, and no other has come in its place")
    if not welcomes:
        why = "nothing that speaks this protocol has answered there yet"
    elif all(session.presence.is_lost for session in sessions):
        why = "the network is cut, or the server has ended, and no other has come in its place"
    elif states == {"starting"}:
        why = "the server is there, but none of its workers is ready yet"
    else:
        why = "its log and BertClient.server_status say what its workers are doing"
    return RequestTimeout(f"{waited}: {why}")


def not_ready(where: str, timeout_s: float, error: Exception | None) -> RequestTimeout:
    """Return the error of a wait for workers; `error` says why there was no answer at all."""
    why = error or "the server answers, but none of its workers does; its log says why"
    return RequestTimeout(f"{where} was not ready within {timeout_s * 1000:.0f} ms: {why}")


def too_large_now(request: Request, limits: Limits) -> TooLarge:
    """Return the error of a request that is to be sent again, but no server takes any more."""
    return TooLarge(
        f"a request of {len(request.chunk.buffer)} bytes was to be sent again, but the server "
        f"takes only {limits.max_request_bytes} now (its option -max_request_bytes)"
    )
