from __future__ import annotations

import json
import logging
import os
import select
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from bert_serving.server import logs
from bert_serving.server.log_lines import (
    FLOOD_LINES,
    FLOOD_S,
    FORMATS,
    FloodFilter,
    JsonFormatter,
    TextFormatter,
    escaped,
)
from bert_serving.server.log_sink import MAX_WAITING_BYTES, LogSink

FORGERY = "a\n2026-01-01 00:00:00 ERROR server   forged\r\x1b[2J\u2028\x85\ud800"
WAIT_S = 10.0


def record(message: str, *args: Any, **extra: Any) -> logging.LogRecord:
    made = logging.LogRecord("bert_serving.broker", logging.WARNING, "f.py", 1, message, args, None)
    vars(made).update(extra)
    return made


def failed_record() -> logging.LogRecord:
    try:
        raise ValueError(FORGERY)
    except ValueError:
        made = record("it failed")
        made.exc_info = sys.exc_info()
    return made


# lines


@pytest.mark.parametrize("name", FORMATS)
def test_a_line_is_one_line_whatever_is_in_it(name: str) -> None:
    line = FORMATS[name]("broker", None).format(record("hello from %s", FORGERY))
    assert line.isprintable()
    assert line.encode().isascii()
    assert "forged" in line


def test_text_names_the_time_the_level_the_role_and_the_worker() -> None:
    line = TextFormatter("worker", 3).format(record("it is %d", 7))
    assert line.split()[2:] == ["WARNING", "worker", "3", "it", "is", "7"]
    assert [len(word) for word in line.split()[:2]] == [10, 8]


def test_the_lines_of_a_traceback_in_text_cannot_be_taken_for_others() -> None:
    first, *others = TextFormatter("broker", None).format(failed_record()).split("\n")
    assert first.endswith("it failed")
    assert len(others) > 3
    assert all(line.startswith("    | ") and line.isprintable() for line in others)


def test_json_has_the_time_in_utc_the_names_and_what_the_event_has() -> None:
    made = record("it is %d", 7, **logs.fields(worker=1, exit_status=-9, name="taken"))
    made.created = 1_790_000_000.1239
    line = json.loads(JsonFormatter("worker", 3).format(made))
    assert line == {
        "time": "2026-09-21T14:13:20.123Z",
        "level": "warning",
        "role": "worker",
        "pid": os.getpid(),
        "worker": 3,
        "message": "it is 7",
        "event": {"worker": 1, "exit_status": -9, "name": "taken"},
    }


def test_json_has_a_traceback_in_the_same_line() -> None:
    line = JsonFormatter("broker", None).format(failed_record())
    assert line.isprintable()
    assert json.loads(line)["traceback"].startswith("Traceback (most recent call last)")
    assert "worker" not in json.loads(line)


def test_a_long_message_is_cut_and_says_so() -> None:
    line = TextFormatter("broker", None).format(record("%s", "x" * 100_000))
    assert len(line) < 10_000
    assert line.endswith("(100000 characters)")


def test_what_can_be_printed_stays_as_it_is() -> None:
    assert escaped("Grüße, 世界 🤗") == "Grüße, 世界 🤗"


# floods


def test_a_flood_of_one_kind_is_held_back_and_counted() -> None:
    now = 0.0
    flood = FloodFilter(lambda: now)
    passed = [flood.filter(record("nonsense %d", number)) for number in range(FLOOD_LINES + 23)]
    assert sum(passed) == FLOOD_LINES
    assert flood.filter(record("something else"))
    now = FLOOD_S
    later = record("nonsense %d", 5)
    assert flood.filter(later)
    line = TextFormatter("broker", None).format(later)
    assert line.endswith("nonsense 5 (23 more like it before)")
    assert flood.filter(again := record("nonsense %d", 6))
    assert TextFormatter("broker", None).format(again).endswith("nonsense 6")


def test_kinds_of_lines_without_number_are_not_all_kept() -> None:
    flood = FloodFilter(lambda: 0.0)
    assert all(flood.filter(record(f"kind {number}")) for number in range(5_000))
    assert len(flood._kinds) <= 1_000


# where lines go


def lost_line(count: int, why: str) -> str:
    return f"{count} lost: {why}"


def read_lines(descriptor: int, number: int) -> list[str]:
    """Return so many lines from a pipe."""
    data = b""
    while data.count(b"\n") < number:
        assert select.select([descriptor], [], [], WAIT_S)[0], data
        data += os.read(descriptor, 1 << 16)
    return data.decode().splitlines()


def test_lines_are_written_in_order() -> None:
    there, here = os.pipe()
    sink = LogSink(here, lost_line)
    for number in range(100):
        sink.put(f"line {number}")
    assert sink.flush(WAIT_S)
    assert read_lines(there, 100) == [f"line {number}" for number in range(100)]


def test_a_pipe_that_nobody_reads_holds_up_nobody_and_its_loss_is_told() -> None:
    there, here = os.pipe()
    sink = LogSink(here, lost_line)
    put = MAX_WAITING_BYTES // 1000 + 200
    for _ in range(put):
        sink.put("x" * 999)
    assert not sink.flush(0.0)
    with os.fdopen(there, "rb") as pipe, ThreadPoolExecutor(1) as pool:
        reading = pool.submit(pipe.read)
        assert sink.flush(WAIT_S)
        sink.put("after")
        assert sink.flush(WAIT_S)
        os.close(here)
        got = reading.result().decode().splitlines()
    lost = [int(line.split()[0]) for line in got if line.endswith("lost: nobody reads them")]
    assert got.count("x" * 999) + sum(lost) == put
    assert sum(lost) > 0
    assert got[-1] == "after"


def test_a_full_disk_loses_lines_and_says_how_many_when_there_is_room_again() -> None:
    kept = os.open("/dev/full", os.O_WRONLY)
    sink = LogSink(kept, lost_line, retry_s=0.01)
    for number in range(3):
        sink.put(f"lost {number}")
    assert sink.flush(WAIT_S)
    there, here = os.pipe()
    os.dup2(here, kept)  # now there is room
    assert read_lines(there, 1) == ["3 lost: No space left on device"]
    sink.put("after")
    assert read_lines(there, 1) == ["after"]


def test_a_reader_that_is_gone_and_comes_back_is_told_what_it_missed() -> None:
    there, here = os.pipe()
    sink = LogSink(here, lost_line, retry_s=60.0)
    os.close(there)
    sink.put("unread")
    assert sink.flush(WAIT_S)
    there, new = os.pipe()
    os.dup2(new, here)
    sink.put("after")
    assert read_lines(there, 2) == ["1 lost: Broken pipe", "after"]


def test_a_descriptor_that_does_not_wait_gets_every_line() -> None:
    there, here = os.pipe()
    os.set_blocking(here, False)
    sink = LogSink(here, lost_line)
    for number in range(500):
        sink.put(f"{number} " + "x" * 300)
    assert [line.split()[0] for line in read_lines(there, 500)] == list(map(str, range(500)))


def test_a_sink_that_is_closed_takes_no_more() -> None:
    there, here = os.pipe()
    sink = LogSink(here, lost_line)
    sink.put("last")
    sink.close(WAIT_S)
    sink.put("too late")
    os.close(here)
    assert read_lines(there, 1) == ["last"]
    assert os.read(there, 10) == b""
