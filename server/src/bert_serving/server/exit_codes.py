"""What the exit status of each of our processes means."""

from __future__ import annotations

import signal

OK = 0
FAILED = 1
USAGE = 2
"""A wrong option; argparse's own code."""
BOOT_FAILED = 3
"""A process could not start and trying again would not help; the cause was reported."""
ORPHANED = 4
"""The supervisor is gone, so its child ended itself."""


def describe(returncode: int) -> str:
    """Return what is known of a process's end, from `Popen.returncode`, in words."""
    if returncode >= 0:
        return f"exited with status {returncode}"
    try:
        name = signal.Signals(-returncode).name
    except ValueError:
        name = f"signal {-returncode}"
    hint = " (out of memory?)" if name == "SIGKILL" else ""
    return f"was ended by {name}{hint}"
