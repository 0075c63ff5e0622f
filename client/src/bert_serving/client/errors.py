"""Every error a call can end with, and the one table that maps them to the wire.

A caller's own mistakes (a number where a text belongs) are plain `TypeError` and
`ValueError`, raised before anything is sent; all else is a `ServingError`:

    ServingError
      ModelMismatch
      TransportError   RequestTimeout (also TimeoutError), ServerUnreachable (also ConnectionError)
      ProtocolError    VersionMismatch, MalformedMessage
      ServerError      InvalidRequest, TooLarge, Overloaded, WorkerFailed, Unavailable,
                       DeadlineExceeded (also TimeoutError)
"""

from __future__ import annotations


class ServingError(Exception):
    """Base of all errors that are not the caller's own mistake."""


class TransportError(ServingError):
    """The server could not be reached, or did not answer."""


class RequestTimeout(TransportError, TimeoutError):
    """No answer came within the caller's time-out."""


class ServerUnreachable(TransportError, ConnectionError):
    """Nothing that speaks this protocol answered at the address."""


class ModelMismatch(ServingError):
    """The servers of one client do not serve the same model with the same default view."""


class ProtocolError(ServingError):
    """The peer sent something that the protocol does not allow."""


class VersionMismatch(ProtocolError):
    """The peer speaks another version of the protocol."""


class MalformedMessage(ProtocolError):
    """A message that does not parse, or whose parts contradict each other.

    Attributes:
        request_id: the request it would have been, if that much can be read.

    """

    request_id: int | None = None


class ServerError(ServingError):
    """The server answered this request with an error.

    Attributes:
        code: the error's name on the wire.
        request_id: the request it answers; None if it answers none.
        retryable: whether the same request may succeed later.
        http_status: the status an HTTP gateway gives for it.
        retry_after_ms: how long the server asks to wait before a retry; None if it does not say.

    """

    code: str = "server_error"
    http_status: int = 500
    retryable: bool = False

    def __init__(
        self, message: str, *, request_id: int | None = None, retry_after_ms: int | None = None
    ) -> None:
        super().__init__(message)
        self.request_id = request_id
        self.retry_after_ms = retry_after_ms


class InvalidRequest(ServerError):
    """The request asks for something that the model or the protocol does not have."""

    code, http_status = "invalid_request", 400


class TooLarge(ServerError):
    """A request, a row, or what would be the answer is larger than the server accepts."""

    code, http_status = "too_large", 413


class Overloaded(ServerError):
    """The server's queue is full; `retry_after_ms` says when to come back."""

    code, http_status, retryable = "overloaded", 429, True


class WorkerFailed(ServerError):
    """The model failed on this request, again and again."""

    code, http_status = "worker_failed", 500


class Unavailable(ServerError):
    """The server is stopping, or has nothing to compute with."""

    code, http_status, retryable = "unavailable", 503, True


class DeadlineExceeded(ServerError, TimeoutError):
    """The request's time ran out on the server before its answer was there."""

    code, http_status = "deadline_exceeded", 504


SERVER_ERRORS: dict[str, type[ServerError]] = {
    error.code: error
    for error in (InvalidRequest, TooLarge, Overloaded, WorkerFailed, Unavailable, DeadlineExceeded)
}


def server_error(
    code: str, message: str, request_id: int | None = None, retry_after_ms: int | None = None
) -> ServerError:
    """Return the exception for a wire code.

    A newer server may know more codes: an unknown one is a plain `ServerError` that has it.
    """
    error = SERVER_ERRORS.get(code, ServerError)(
        message, request_id=request_id, retry_after_ms=retry_after_ms
    )
    error.code = code
    return error
