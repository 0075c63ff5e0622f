from __future__ import annotations

import pickle

import pytest

from bert_serving.client import errors
from bert_serving.client.errors import SERVER_ERRORS, ServerError, ServingError, server_error

TABLE = {
    "invalid_request": (errors.InvalidRequest, 400, False),
    "too_large": (errors.TooLarge, 413, False),
    "overloaded": (errors.Overloaded, 429, True),
    "worker_failed": (errors.WorkerFailed, 500, False),
    "unavailable": (errors.Unavailable, 503, True),
    "deadline_exceeded": (errors.DeadlineExceeded, 504, False),
}


def test_every_server_error_has_its_code_its_status_and_whether_to_retry() -> None:
    assert {
        code: (error, error.http_status, error.retryable) for code, error in SERVER_ERRORS.items()
    } == TABLE
    assert {error.code for error in ServerError.__subclasses__()} == set(TABLE)


@pytest.mark.parametrize("code", TABLE)
def test_a_code_becomes_its_exception_with_all_that_came_along(code: str) -> None:
    error = server_error(code, "why", request_id=7, retry_after_ms=50)
    assert type(error) is TABLE[code][0]
    assert (error.code, str(error), error.request_id, error.retry_after_ms) == (code, "why", 7, 50)


def test_a_code_of_a_newer_server_is_kept_with_its_message_and_is_not_retryable() -> None:
    error = server_error("too_hot", "the room is on fire")
    assert type(error) is ServerError
    assert (error.code, str(error)) == ("too_hot", "the room is on fire")
    assert not error.retryable
    assert error.request_id is error.retry_after_ms is None


@pytest.mark.parametrize(
    ("error", "kinds"),
    [
        (errors.RequestTimeout, (errors.TransportError, TimeoutError)),
        (errors.ServerUnreachable, (errors.TransportError, ConnectionError)),
        (errors.VersionMismatch, (errors.ProtocolError,)),
        (errors.MalformedMessage, (errors.ProtocolError,)),
        (errors.DeadlineExceeded, (errors.ServerError, TimeoutError)),
        *[(error, (errors.ServerError,)) for error in SERVER_ERRORS.values()],
    ],
)
def test_an_error_is_also_what_callers_commonly_catch(
    error: type[ServingError], kinds: tuple[type[Exception], ...]
) -> None:
    for kind in (*kinds, ServingError):
        assert issubclass(error, kind)


@pytest.mark.parametrize("code", TABLE)
def test_an_error_survives_the_way_between_processes(code: str) -> None:
    error = server_error(code, "why", request_id=7, retry_after_ms=50)
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is type(error)
    assert (str(back), vars(back)) == (str(error), vars(error))
