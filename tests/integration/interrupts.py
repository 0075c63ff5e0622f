"""Interrupts of a call: by a signal, or at a chosen place of the client's own code."""

from __future__ import annotations

import dis
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import bert_serving.client

_CLIENT = str(Path(bert_serving.client.__file__).parent)
_CHECKS = ("CALL", "RESUME", "JUMP_BACKWARD")  # where CPython looks for signals: after these


def interrupted(call: Callable[[], object], after_s: float) -> None:
    """Make a call and interrupt it, wherever it is by then, unless it has ended."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    with suppress(KeyboardInterrupt):
        try:
            signal.setitimer(signal.ITIMER_REAL, after_s)
            call()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def interrupted_at(call: Callable[[], object], place: int) -> bool:
    """Make a call and interrupt it at its place of this number; false if it has fewer.

    A place is where the interpreter looks for signals while it runs the client's code. After
    the interrupt the rest of the call runs undisturbed.
    """
    left = place
    codes: dict[CodeType, set[int]] = {}

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal left
        if left < 0 or not frame.f_code.co_filename.startswith(_CLIENT):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            offsets = codes.get(frame.f_code)
            if offsets is None:
                offsets = codes[frame.f_code] = _checked_before(frame.f_code)
            if frame.f_lasti in offsets:
                left -= 1
                if left < 0:
                    raise KeyboardInterrupt
        return trace

    tracing = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(tracing)
    return False


def _checked_before(code: CodeType) -> set[int]:
    """Return the instructions of a function that come after a look for signals."""
    instructions = list(dis.get_instructions(code))
    return {
        following.offset
        for instruction, following in pairwise(instructions)
        if instruction.opname.startswith(_CHECKS)
    }
