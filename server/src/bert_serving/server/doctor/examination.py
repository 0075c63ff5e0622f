"""Making checks, each in a process of its own: none can hang or end the examination."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from bert_serving.server import exit_codes
from bert_serving.server.interpreter import module_command

from .checks import CHECKS, Settings
from .finding import Finding, problem

AT_A_TIME = 4
END_S = 1.0  # from being killed to being gone
COMMAND = module_command("bert_serving.server.doctor.checks")
ENVIRONMENT = {"HF_HUB_OFFLINE": "1"}  # an examination fetches nothing


def examine(settings: Settings, names: Sequence[str]) -> Iterator[Finding]:
    """Return the findings of checks; those that measure time come last, one after the other."""
    timed = [name for name in names if CHECKS[name].measures_time]
    untimed = [name for name in names if name not in timed]
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        for found in pool.map(lambda name: make(name, settings), untimed):
            yield from found
    for name in timed:
        yield from make(name, settings)


def make(
    name: str,
    settings: Settings,
    limit_s: float | None = None,
    command: Sequence[str] = COMMAND,
) -> list[Finding]:
    """Return the findings of one check; that it crashed, or took too long, is one."""
    limit_s = limit_s or CHECKS[name].limit_s
    try:
        process = subprocess.Popen(  # noqa: S603  # our own module
            [*command, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **ENVIRONMENT},
            start_new_session=True,
        )
    except OSError as error:
        advice = "see this user's limits: ulimit -a"
        return [problem(name, f"the check cannot be started: {error.strerror}", advice)]
    try:
        out, errors = process.communicate(settings.to_json().encode(), limit_s)
    except subprocess.TimeoutExpired:
        seen = f"the check has not ended within {limit_s:g} s"
        return [problem(name, seen, "whatever it looks at hangs: a disk, a driver, a network")]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # with whatever it has started
            with contextlib.suppress(subprocess.TimeoutExpired):  # a dead disk holds it still
                process.communicate(timeout=END_S)
    return read_findings(name, process.returncode, out, errors)


def read_findings(name: str, returncode: int, out: bytes, errors: bytes) -> list[Finding]:
    """Return what the process of a check has written; what became of it if that is nothing."""
    if returncode == exit_codes.OK:
        with contextlib.suppress(ValueError, TypeError):
            return [Finding(**found) for found in json.loads(out)]
    lines = errors.decode("utf-8", "replace").strip().splitlines()
    last = f": {lines[-1][:200]}" if lines else ""
    seen = f"the check itself failed: it {exit_codes.describe(returncode)}{last}"
    return [problem(name, seen, "this is a mistake of the check's, or of what it looks at")]
