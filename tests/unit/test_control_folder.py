"""The names of the sockets in the control folder, and how long its own may be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bert_serving.server import control


def test_no_name_of_a_socket_is_longer_than_the_longest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(control, "LONGEST_PATH", 1_000)
    own = control.addresses(4_194_304)  # as many processes as Linux can have
    for address in (own.supervisor, own.backend, own.frontend, control.port_address(65535)):
        assert len(control.socket_file(address).name) <= len(control.LONGEST_NAME)


def test_a_folder_is_too_long_by_what_its_longest_socket_needs() -> None:
    room = control.LONGEST_PATH - len(control.LONGEST_NAME) - len("/")
    assert not control.is_too_long(Path("/" + "f" * (room - 1)))
    assert control.is_too_long(Path("/" + "f" * room))
    assert control.is_too_long(Path("/" + "ü" * (room // 2 + 1)))


def test_a_folder_whose_name_is_too_long_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(control, "LONGEST_PATH", len(os.fsencode(tmp_path)))
    with pytest.raises(control.ControlError, match=r"set XDG_RUNTIME_DIR .* with a short name"):
        control.control_folder()
