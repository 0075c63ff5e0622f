from __future__ import annotations

import os
import signal

import pytest

from bert_serving.server import exit_codes
from bert_serving.server.endings import Ending
from bert_serving.server.tally import Tally, shared_descriptor

KILLED = -signal.SIGKILL
FULL = "out of memory, as the kernel has counted: more memory, or fewer workers"
NOT_FULL = "not for want of memory, as the kernel has counted: by somebody"


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (0, "exited with status 0"),
        (1, "exited with status 1"),
        (exit_codes.BOOT_FAILED, "exited with status 3 (it could not start)"),
        (exit_codes.ORPHANED, "exited with status 4 (its parent was gone)"),
        (-signal.SIGTERM, "was ended by SIGTERM"),
        (KILLED, "was ended by SIGKILL (out of memory?)"),
        (-signal.SIGSEGV, "was ended by SIGSEGV (a crash in compiled code)"),
        (-signal.SIGRTMIN - 1, f"was ended by signal {signal.SIGRTMIN + 1}"),
    ],
)
def test_an_exit_status_is_told_in_words(status: int, words: str) -> None:
    assert exit_codes.describe(status) == words


@pytest.mark.parametrize(
    ("ending", "words"),
    [
        (Ending(0, 1.0), "exited with status 0 after 1.0 s"),
        (
            Ending(KILLED, 12.34, batches=7, memory_bytes=3_210_000_000, oom_kills=1),
            f"was ended by SIGKILL ({FULL}) after 12.3 s and 7 batches, last seen with 3.21 GB",
        ),
        (
            Ending(KILLED, 1.0, oom_kills=0),
            f"was ended by SIGKILL ({NOT_FULL}) after 1.0 s",
        ),
        (Ending(KILLED, 1.0), "was ended by SIGKILL (out of memory?) after 1.0 s"),
        (
            Ending(KILLED, 1.0, oom_kills=1, was_told=True),
            "was ended by SIGKILL (by the supervisor) after 1.0 s",
        ),
        (
            Ending(-signal.SIGSEGV, 1.0, oom_kills=1),
            "was ended by SIGSEGV (a crash in compiled code) after 1.0 s",
        ),
    ],
)
def test_an_ending_is_told_in_one_line(ending: Ending, words: str) -> None:
    assert str(ending) == words


def test_an_ending_has_fields_for_a_log() -> None:
    ending = Ending(KILLED, 12.34567, batches=7, memory_bytes=100, oom_kills=1)
    assert ending.fields() == {
        "exit_status": None,
        "signal": "SIGKILL",
        "lived_s": 12.346,
        "batches": 7,
        "memory_bytes": 100,
        "oom_kills": 1,
        "by_supervisor": False,
    }
    assert Ending(3, 1.0).fields()["exit_status"] == 3
    assert Ending(3, 1.0).fields()["signal"] is None


def test_what_one_process_counts_another_reads() -> None:
    descriptor = shared_descriptor()
    mine, theirs = Tally(descriptor), Tally(descriptor)
    os.close(descriptor)
    for _ in range(3):
        theirs.count()
    assert mine.value == 3
    assert Tally().value == 0
