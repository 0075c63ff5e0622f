"""The ready file: whose it is, and what is never written over."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from full_disk import full_disk

from bert_serving.server.ready import ReadyFileError, announce, remove_stale, withdraw


def test_a_file_is_removed_by_the_process_that_wrote_it(tmp_path: Path) -> None:
    file = tmp_path / "ready"
    announce({"native": "tcp://h:1", "pid": os.getpid()}, str(file))
    assert json.loads(file.read_text())["pid"] == os.getpid()
    withdraw(str(file))
    assert not file.exists()
    withdraw(str(file))
    withdraw(None)


@pytest.mark.parametrize("text", ['{"pid": 1}', '{"native": ""}', "[]", "7", "no json", ""])
def test_a_file_of_somebody_else_stays(text: str, tmp_path: Path) -> None:
    file = tmp_path / "ready"
    file.write_text(text)
    withdraw(str(file))
    assert file.read_text() == text


def test_a_file_of_an_earlier_server_is_removed(tmp_path: Path) -> None:
    file = tmp_path / "ready"
    file.write_text("whatever it says")
    remove_stale(str(file))
    assert not file.exists()
    remove_stale(str(file))


@pytest.mark.parametrize(
    "make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/stdout")]
)
def test_what_is_no_plain_file_stays_as_it_is(make: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "ready"
    make(path)
    before = path.lstat()
    with pytest.raises(ReadyFileError, match=f"{path} is there and no plain file: give another"):
        remove_stale(str(path))
    assert path.lstat() == before


def test_nothing_is_left_where_there_is_no_room(tmp_path: Path) -> None:
    file = tmp_path / "ready"
    with full_disk(), pytest.raises(ReadyFileError, match=f"{file} cannot be written"):
        announce({"native": "tcp://h:1", "pid": 1}, str(file))
    assert not list(tmp_path.iterdir())
