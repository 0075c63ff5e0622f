"""Whether the ports that a server is to listen on are free, and who has them if not."""

from __future__ import annotations

import contextlib
import errno
from pathlib import Path

from bert_serving.server.config import ServerConfig
from bert_serving.server.listening_ports import (
    ADVICE,
    HIGHEST,
    bind_error,
    contradiction,
    listening_ports,
)

from .finding import Finding, ok, problem

LISTENING = "0A"


def look_at_ports(config: ServerConfig) -> list[Finding]:
    """Check every port that the options name, and whether they go together."""
    named = listening_ports(config)
    found = [
        judge_port(name, config.host, port, bind_error(config.host, port), holder(port))
        for name, port in named.items()
        if port <= HIGHEST
    ]
    why = contradiction(named)
    return found if why is None else [*found, problem("ports", why, ADVICE)]


def judge_port(option: str, host: str, port: int, error: int | None, held_by: str) -> Finding:
    """Return whether a port can be listened on.

    Args:
        option: that named it.
        host: the address to listen on.
        port: its number.
        error: `errno` of the attempt; None if it succeeded.
        held_by: who has it, in words; empty if that is not known.

    """
    subject = f"{option} {port}"
    if error is None:
        return ok(subject, f"free on {host}")
    if error == errno.EADDRINUSE:
        seen = f"taken by {held_by or 'a process of another user'}"
        return problem(subject, seen, f"end it, or give another -{option}; 0 is any free one")
    if error == errno.EACCES:
        return problem(subject, "not allowed to this user", "give a port above 1023")
    reason = errno.errorcode.get(error, str(error))
    return problem(subject, f"{host} cannot be listened on: {reason}", "give another -host")


def holder(port: int) -> str:
    """Return the process that listens on a port, as far as this user may know."""
    inodes = {
        words[9]
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        for words in map(str.split, _lines(Path(table)))
        if len(words) > 9 and words[3] == LISTENING and words[1].endswith(f":{port:04X}")
    }
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for folder in Path("/proc").glob("[0-9]*") if wanted else []:
        with contextlib.suppress(OSError):
            if any(str(link.readlink()) in wanted for link in (folder / "fd").iterdir()):
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
                return f"process {folder.name}: {command[:80]}"
    return ""


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()[1:]
    except OSError:
        return []
