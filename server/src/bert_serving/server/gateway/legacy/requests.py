"""Reading what a client of bert-as-service has sent: pure, and never surprised."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bert_serving.client.pairs import BERT_AS_SERVICE_SEPARATOR, split_text, split_tokens
from bert_serving.client.rows import Row

SHOW_CONFIG = b"SHOW_CONFIG"
SHOW_STATUS = b"SHOW_STATUS"
TERMINATION = b"TERMINATION"

MAX_IDENTITY_BYTES = 255  # as in ZeroMQ itself
MAX_ID_DIGITS = 20
MAX_BODY_BYTES = 64 << 20
MAX_LISTS = 1 << 20  # an empty one takes twenty times the memory of its two characters


class Unanswerable(ValueError):
    """A message that leaves open who wants an answer to what; its text says why."""


@dataclass(frozen=True)
class LegacyRequest:
    """One message.

    Attributes:
        identity: what the client has subscribed to.
        request_id: its number for the request, in digits, as it wants it back.
        body: a command, or JSON.

    """

    identity: bytes
    request_id: bytes
    body: bytes

    @property
    def client(self) -> str:
        """The client's name, for logs and status."""
        return self.identity.decode("utf-8", "replace")


def parse_request(frames: Sequence[bytes]) -> LegacyRequest:
    """Return the message that frames are; its body may still be nonsense.

    The last frame, how many rows there are, is not believed and so not read.

    Raises:
        Unanswerable: nobody could take in an answer to this.

    """
    if len(frames) != 4:
        raise Unanswerable(
            f"{len(frames)} frames, expected 4: identity, texts or a command, request id, rows"
        )
    identity, body, request_id = frames[:3]
    if not 0 < len(identity) <= MAX_IDENTITY_BYTES:
        raise Unanswerable(
            f"an identity of {len(identity)} bytes, expected 1 to {MAX_IDENTITY_BYTES}"
        )
    if not request_id.isdigit() or len(request_id) > MAX_ID_DIGITS:
        raise Unanswerable(
            f"a request id of {len(request_id)} bytes, expected 1 to {MAX_ID_DIGITS} digits"
        )
    return LegacyRequest(identity, request_id, body)


def parse_rows(body: bytes) -> tuple[list[Row], bool]:
    """Return the rows of a request and whether they are tokens; pairs are split.

    Raises:
        ValueError: they cannot be encoded, with what was got and what is allowed.

    """
    if len(body) > MAX_BODY_BYTES:
        raise ValueError(
            f"a request of {len(body)} bytes: at most {MAX_BODY_BYTES} are taken, send fewer rows "
            "at a time"
        )
    values = _unpacked(body)
    if not isinstance(values, list) or not values:
        got = "an empty list" if values == [] else f"JSON of type {type(values).__name__}"
        raise ValueError(f"got {got}: expected a list of texts or of lists of tokens")
    if type(values[0]) is list:
        return [_tokens_row(value, number) for number, value in enumerate(values)], True
    return [_text_row(value, number) for number, value in enumerate(values)], False


def _unpacked(body: bytes) -> Any:
    if body.count(b"[") > MAX_LISTS:  # also those inside of texts: none is looked for there
        raise ValueError(
            f"a request with more than {MAX_LISTS} opening brackets: send fewer rows at a time"
        )
    try:
        return json.loads(body, object_pairs_hook=_refuse_object)
    except _ObjectFound:
        raise ValueError("got a JSON object (in braces), expected a list of texts") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"this is no JSON ({error}): expected a list of texts") from None


class _ObjectFound(Exception):
    """There is an object somewhere: reading on would take memory for nothing."""


def _refuse_object(_: object) -> None:
    raise _ObjectFound


def _text_row(value: Any, number: int) -> Row:
    if type(value) is not str:  # not named: errors are logged, what clients send is not
        got = f"of type {type(value).__name__}"
        raise ValueError(f"row {number} is {got}: expected a text, like row 0")
    return split_text(value.strip(), BERT_AS_SERVICE_SEPARATOR)


def _tokens_row(value: Any, number: int) -> Row:
    if type(value) is not list or not all(type(token) is str for token in value):
        got = "not only strings" if type(value) is list else f"of type {type(value).__name__}"
        raise ValueError(f"row {number} is {got}: expected a list of tokens, like row 0")
    return split_tokens(value, BERT_AS_SERVICE_SEPARATOR)
