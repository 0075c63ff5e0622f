"""Starting a role in a process of its own, with its config on standard input.

A fresh interpreter, not a fork: nothing of the parent's threads, sockets or torch state
comes along, and no `__main__` is imported again. Standard input keeps the config out of
the process list.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Generic

from . import exit_codes
from .endings import Ending, Vitals
from .interpreter import module_command
from .roles import Role, RoleConfig, WorkerConfig, from_json, to_json
from .scheduling.restarts import RestartPolicy
from .tally import Tally, shared_descriptor

WATCH_S = 1.0
PR_SET_PDEATHSIG = 1
GROUP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_ENVIRONMENT = {
    # Keep the memory of a message for the next one: glibc gives blocks of more than 128 KiB back
    # to the system at once, and every page of an answer is then faulted in anew by each process
    # that it passes through. It takes a fifth of the rate on large answers (measured).
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
}
"""What a role's libraries read when they are loaded; the operator's own settings come first."""


def start(module: str, config: RoleConfig, tally: int) -> subprocess.Popen[bytes]:
    """Start a role's module of this package; its `main` reads the config.

    Args:
        module: the role's.
        config: what it is told.
        tally: the descriptor of its `Tally`.

    """
    command = module_command(f"{__package__}.{module}", str(os.getpid()), str(tally))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, GROUP_SIGNALS)  # inherited, see `run_role`
    try:
        process = subprocess.Popen(  # noqa: S603  # our own module
            command,
            stdin=subprocess.PIPE,
            env={**_ENVIRONMENT, **os.environ},
            pass_fds=(tally,),
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    assert process.stdin is not None
    try:
        process.stdin.write(to_json(config).encode())
        process.stdin.close()
    except BrokenPipeError:  # it ended at once; its status says why
        pass
    return process


@dataclass
class Child(Generic[Role]):
    """A place among a server's processes: its process changes, the rest stays.

    Attributes:
        name: for the log.
        module: the role's.
        config: what the role is told.
        policy: how soon it is started again.
        process: its present life, if it has one.
        restart_at: when its next life begins, if it is waiting for that.
        is_ready: its present life has said that it is.
        exit_status: of its last life that has ended.
        restarts: how many lives have followed its first.
        ending: what else is known of that.

    """

    name: str
    module: str
    config: Role
    policy: RestartPolicy = field(default_factory=RestartPolicy)
    process: subprocess.Popen[bytes] | None = None
    restart_at: float | None = None
    is_ready: bool = False
    exit_status: int | None = None
    restarts: int = 0
    ending: Ending | None = None
    _vitals: Vitals | None = None

    def start(self) -> None:
        """Begin a life."""
        descriptor = shared_descriptor()
        try:
            self.process = start(self.module, self.config, descriptor)
            tally = Tally(descriptor) if isinstance(self.config, WorkerConfig) else None
        finally:
            os.close(descriptor)
        self._vitals = Vitals(self.process.pid, tally)
        self.restart_at, self.is_ready = None, False

    def mark_ready(self, now: float) -> None:
        """Note that it has said it is ready."""
        self.is_ready = True
        self.policy.on_healthy(now)
        if self._vitals is not None:  # it has now loaded what it needs: it may end before long
            self._vitals.look_at_memory()

    @property
    def pid(self) -> int | None:
        """The process id of its present life, if it has one."""
        return None if self.process is None else self.process.pid

    def take_ended(self) -> int | None:
        """Take a process that has ended out of its place; returns which it was."""
        process, vitals = self.process, self._vitals
        if process is None or vitals is None:
            return None
        if process.poll() is None:
            vitals.look()
            return None
        self.ending = vitals.ending(process.returncode)
        self.process, self.is_ready, self.exit_status = None, False, process.returncode
        return process.pid

    def end(self, patience_s: float) -> None:
        """End its process, if need be by force after so many seconds."""
        if self.process is None:
            return
        try:
            self.process.wait(patience_s)
        except subprocess.TimeoutExpired:  # nothing of it is lost: it has no state
            self.process.kill()
            if self._vitals is not None:
                self._vitals.was_told = True

    @property
    def is_alive(self) -> bool:
        """Whether it has a process that has not ended."""
        return self.process is not None and self.process.poll() is None

    def is_due(self, now: float) -> bool:
        """Whether it is time for its next life."""
        return self.restart_at is not None and now >= self.restart_at

    def restart_later(self, now: float, jitter: float) -> float:
        """Have another life begin; returns how many seconds there are to it."""
        delay_s = self.policy.on_exit(now, jitter)
        self.restart_at = now + delay_s
        self.restarts += 1
        return delay_s


def run_role(run: Callable[[Any], int], role: type[Role]) -> int:
    """Read the config that `start` wrote, and live the role's life.

    The terminal's Ctrl-C and its end reach every process of the group, and a service manager's
    SIGTERM may too; only the supervisor acts on them, and tells its children. A handler
    that does nothing is not passed on to a child's own children, as `SIG_IGN` would be.
    """
    _end_with_parent()
    for number in GROUP_SIGNALS:
        signal.signal(number, _leave_to_supervisor)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, GROUP_SIGNALS)
    return run(from_json(role, sys.stdin.read()))


def _end_with_parent() -> None:
    """Have the kernel end this process when its parent ends, even if it hangs or is stopped.

    Only Linux can.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if not Parent().is_alive:  # it ended before the kernel knew
        os._exit(exit_codes.ORPHANED)


def _leave_to_supervisor(_number: int, _frame: FrameType | None) -> None:
    """Do nothing on a signal."""


class Parent:
    """The process that started this one; a child whose parent has died ends itself.

    `start` says which process that is: by the time a child asks, it may have lost it.
    """

    def __init__(self) -> None:
        self._pid = int(sys.argv[1])

    @property
    def is_alive(self) -> bool:
        """Whether it is still there."""
        return os.getppid() == self._pid

    def watch(self) -> None:
        """End this process soon after its parent, whatever its other threads are doing."""
        _end_with_parent()
        threading.Thread(target=self._end_after_it, name="parent", daemon=True).start()

    def _end_after_it(self) -> None:
        while self.is_alive:
            time.sleep(WATCH_S)
        time.sleep(WATCH_S)  # for a loop that notices by itself, and closes in order
        os._exit(exit_codes.ORPHANED)
