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
DEVICE_LOST = 5
"""A worker's device does not compute any more; another process may find it well."""

_STATUSES = {
    BOOT_FAILED: "it could not start",
    ORPHANED: "its parent was gone",
    DEVICE_LOST: "its device is lost",
}
_SIGNALS = {
    "SIGABRT": "a check in compiled code failed, which says so above",
    "SIGBUS": "a mapped file has become shorter, or a disk or /dev/shm is full",
    "SIGILL": "this processor lacks an instruction; see bert-serving-doctor",
    "SIGKILL": "out of memory?",
    "SIGSEGV": "a crash in compiled code",
}


def signal_name(returncode: int) -> str | None:
    """Return the signal that a process was ended by, from `Popen.returncode`; None if by none."""
    if returncode >= 0:
        return None
    try:
        return signal.Signals(-returncode).name
    except ValueError:
        return f"signal {-returncode}"


def describe(returncode: int, hint: str | None = None) -> str:
    """Return what is known of a process's end, from `Popen.returncode`, in words.

    Args:
        returncode: as `Popen` has it.
        hint: why it was so, if more is known than the number says.

    """
    name = signal_name(returncode)
    if name is None:
        hint, ended = hint or _STATUSES.get(returncode), f"exited with status {returncode}"
    else:
        hint, ended = hint or _SIGNALS.get(name), f"was ended by {name}"
    return ended if hint is None else f"{ended} ({hint})"
