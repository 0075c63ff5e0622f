"""What ends a process when its owner is gone, however that ended."""

from __future__ import annotations

import subprocess

SCRIPT = 'read _; kill -TERM "$1"'
"""A read ends when the other end of a pipe is closed, and that even a SIGKILL does."""


class Guard:
    """Asks a process to end when this one is gone, until it is dismissed.

    Args:
        pid: the process; it may have a session of its own.

    """

    def __init__(self, pid: int) -> None:
        self._process = subprocess.Popen(  # noqa: S603  # our own script
            ["/bin/sh", "-c", SCRIPT, "guard", str(pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # what ends the owner's session must not end it before
        )

    def dismiss(self) -> None:
        """End it, and leave its process alone."""
        self._process.kill()
        self._process.communicate()
