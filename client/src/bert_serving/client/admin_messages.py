"""The messages of remote administration, as values with their frames.

Client to broker: `Admin`, which only a key in the server's -admin_keys may send. Broker to
client: one or two `AdminAnswer`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from . import fields
from .errors import MalformedMessage
from .frames import Header, encode_message
from .messages import MAX_ID, MAX_MESSAGE_CHARS, MAX_NAME_CHARS

COMMANDS = ("status", "reload", "scale", "terminate")
MAX_WORKERS = 1_024
MAX_PATH_CHARS = 4_096


@dataclass(frozen=True)
class Admin:
    """A command to the server.

    Attributes:
        id: the client's number for it, which comes back in the answers.
        command: one of `COMMANDS`.
        num_worker: of `scale`: how many workers there are to be.
        model_dir: of `reload`: another model, as the server names it; None for the same.

    """

    id: int
    command: str
    num_worker: int | None = None
    model_dir: str | None = None

    def to_frames(self) -> list[Any]:
        """Return the frames to send."""
        header: Header = {"type": "admin", "id": self.id, "command": self.command}
        return encode_message({**header, **self.arguments()})

    def arguments(self) -> Header:
        """Return the command's own fields, those that it has."""
        given = {"num_worker": self.num_worker, "model_dir": self.model_dir}
        return {name: value for name, value in given.items() if value is not None}

    @classmethod
    def parse(cls, header: Header) -> Admin:
        """Return the command that a header has.

        Raises:
            MalformedMessage: it has none, or not with what belongs to it.

        """
        command = fields.string(header, "command", MAX_NAME_CHARS)
        if command not in COMMANDS:
            raise MalformedMessage(f"command is none of {', '.join(COMMANDS)}")
        num_worker = model_dir = None
        if command == "scale":
            num_worker = fields.integer(header, "num_worker", 1, MAX_WORKERS)
        elif command == "reload" and header.get("model_dir") is not None:
            model_dir = fields.name(header, "model_dir", MAX_PATH_CHARS)
        return cls(fields.integer(header, "id", 0, MAX_ID), command, num_worker, model_dir)


@dataclass(frozen=True)
class AdminAnswer:
    """What becomes of a command.

    Attributes:
        id: the command's.
        answer: `status`; `refused`; `accepted`, then `changed` or `failed`; `terminating`,
            then `terminated`.
        status: of `status`: all that the server says of itself.
        cause: of `refused` and `failed`: why.
        steps: of `accepted`: how many workers are to be changed.
        pid: of `terminating`: the process that will have ended.

    """

    id: int
    answer: str
    status: Mapping[str, Any] | None = None
    cause: str | None = None
    steps: int | None = None
    pid: int | None = None

    def to_frames(self) -> list[Any]:
        """Return the frames to send."""
        header: Header = {"type": "admin", "id": self.id, "answer": self.answer, **self.told()}
        return encode_message(header)

    def told(self) -> Header:
        """Return the answer's own fields, those that it has."""
        cause = None if self.cause is None else self.cause[:MAX_MESSAGE_CHARS]
        given = {"status": self.status, "cause": cause, "steps": self.steps, "pid": self.pid}
        return {name: value for name, value in given.items() if value is not None}

    @classmethod
    def parse(cls, header: Header) -> AdminAnswer:
        """Return the answer that a header has.

        Raises:
            MalformedMessage: it has none, or not with what belongs to it.

        """
        answer = fields.name(header, "answer", MAX_NAME_CHARS)
        return cls(
            id=fields.integer(header, "id", 0, MAX_ID),
            answer=answer,
            status=fields.mapping(header, "status") if answer == "status" else None,
            cause=(
                fields.string(header, "cause", MAX_MESSAGE_CHARS)
                if answer in ("refused", "failed")
                else None
            ),
            steps=fields.integer(header, "steps", 0, MAX_ID) if answer == "accepted" else None,
            pid=fields.integer(header, "pid", 0, MAX_ID) if answer == "terminating" else None,
        )
