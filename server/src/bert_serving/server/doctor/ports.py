"""Whether the ports that a server is to listen on are free, and who has them if not."""

from __future__ import annotations

import contextlib
import errno
import socket as sockets
from pathlib import Path

from bert_serving.server.config import ServerConfig

from .finding import Finding, ok, problem

LISTENING = "0A"


def look_at_ports(config: ServerConfig) -> list[Finding]:
    """Check every port that the options name."""
    named = {"port": config.port, "legacy_port": config.legacy_port}
    if config.legacy_port:
        named["legacy_port_out"] = config.legacy_port_out or config.legacy_port + 1
    return [
        judge_port(name, config.host, port, bind_error(config.host, port), holder(port))
        for name, port in named.items()
        if port
    ]


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


def bind_error(host: str, port: int) -> int | None:
    """Return what comes of an attempt to listen."""
    family = sockets.AF_INET6 if ":" in host else sockets.AF_INET
    with sockets.socket(family, sockets.SOCK_STREAM) as socket:
        socket.setsockopt(sockets.SOL_SOCKET, sockets.SO_REUSEADDR, 1)  # as libzmq does
        try:
            socket.bind((host, port))
            socket.listen()
        except OSError as error:  # a name that is none has numbers of its own
            return error.errno if error.errno and error.errno > 0 else errno.EADDRNOTAVAIL
    return None


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
