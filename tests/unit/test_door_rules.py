from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import zmq
from zmq.utils import z85

from bert_serving.server.certificates import pair_files, write_pair
from bert_serving.server.config import ServerConfig, option_fields, public_settings
from bert_serving.server.doors.handshakes import (
    NO_KEY,
    OTHER,
    UNKNOWN,
    WORDS,
    WRONG_KEY,
    Handshakes,
)
from bert_serving.server.doors.keyring import Keyring
from bert_serving.server.doors.refusals import MAX_LINES, OTHERS, QUIET_S, Refusals
from bert_serving.server.doors.zap import ZapRequest
from bert_serving.server.exposure import ExposureError, check_exposure, is_loopback
from bert_serving.server.preflight import StartError, check
from bert_serving.server.remote_workers import difference

KEYS = {"server_key": "/k/server.key_secret", "client_keys": "/k/clients"}
OUTSIDE = "0.0.0.0"  # what is to be refused


# exposure


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_this_machine_alone_reaches_loopback(host: str) -> None:
    assert is_loopback(host)
    assert check_exposure(ServerConfig(host=host, legacy_port=5555)) == []


@pytest.mark.parametrize("host", [OUTSIDE, "::", "10.0.0.1", "*", "eth0", "example.org", ""])
def test_any_other_address_needs_keys_or_the_word(host: str) -> None:
    assert not is_loopback(host)
    with pytest.raises(ExposureError, match=r"-server_key and -client_keys .* -allow_insecure"):
        check_exposure(ServerConfig(host=host))
    assert check_exposure(ServerConfig(host=host, **KEYS)) == []
    (warning,) = check_exposure(ServerConfig(host=host, allow_insecure=True))
    assert warning.startswith(f"INSECURE: the native port on {host}")


def test_the_old_protocol_needs_the_word_even_beside_keys() -> None:
    config = {"host": OUTSIDE, "legacy_port": 5555, **KEYS}
    with pytest.raises(ExposureError, match=r"-legacy_port .* cannot be encrypted"):
        check_exposure(ServerConfig(**config))
    (warning,) = check_exposure(ServerConfig(**config, allow_insecure=True))
    assert "ports of bert-as-service" in warning


def test_both_open_ports_are_named() -> None:
    config = ServerConfig(host=OUTSIDE, legacy_port=5555, allow_insecure=True)
    assert len(check_exposure(config)) == 2


@pytest.mark.parametrize("one", KEYS)
def test_one_of_the_two_keys_alone_is_refused_everywhere(one: str) -> None:
    with pytest.raises(ExposureError, match=f"-{one} needs"):
        check_exposure(ServerConfig(**{one: KEYS[one]}, allow_insecure=True))


@pytest.mark.parametrize(
    "given",
    [
        {"backend_port": 5560},
        {"worker_keys": "/k/workers"},
        {"backend_port": 5560, "worker_keys": "/k/workers"},
        {"backend_port": 5560, **KEYS},
    ],
)
def test_workers_have_no_way_in_without_keys(given: dict[str, Any]) -> None:
    with pytest.raises(ExposureError, match="bert-serving-keygen"):
        check_exposure(ServerConfig(**given, allow_insecure=True))


def test_a_folder_of_keys_that_cannot_be_looked_at_is_named(tmp_path: Path) -> None:
    files = pair_files("server", tmp_path, tmp_path)
    write_pair("server", files)
    config = ServerConfig(port=0, server_key=str(files.secret), client_keys="/" + "k" * 300)
    with pytest.raises(StartError, match=r"-client_keys /k+ cannot be looked at: File name too"):
        check(config)


def test_workers_with_keys_do_not_open_the_native_port() -> None:
    workers = {"backend_port": 5560, "worker_keys": "/w", "server_key": "/k"}
    assert check_exposure(ServerConfig(**workers)) == []
    with pytest.raises(ExposureError, match="-client_keys"):
        check_exposure(ServerConfig(host=OUTSIDE, **workers))


def test_administrators_come_in_only_where_clients_show_their_keys() -> None:
    assert check_exposure(ServerConfig(host=OUTSIDE, admin_keys="/a", **KEYS)) == []
    with pytest.raises(ExposureError, match="-admin_keys needs -server_key"):
        check_exposure(ServerConfig(admin_keys="/a"))
    workers = {"backend_port": 5560, "worker_keys": "/w", "server_key": "/k"}
    with pytest.raises(ExposureError, match="-admin_keys needs -client_keys"):
        check_exposure(ServerConfig(admin_keys="/a", **workers))


MODEL = {"name": "a", "num_layers": 6, "hidden_size": 384, "device": "cpu", "dtype": "float32"}
VIEW = ServerConfig().default_view


def test_a_worker_elsewhere_must_compute_what_ours_do() -> None:
    same = {**MODEL, "name": "b", "device": "cuda:0", "dtype": "float16"}
    assert difference(MODEL, same, VIEW, VIEW.to_wire()) is None
    assert difference({}, MODEL, VIEW, VIEW.to_wire()) is None
    other = {**MODEL, "hidden_size": 768}
    assert "hidden_size 768" in str(difference(MODEL, other, VIEW, VIEW.to_wire()))
    other_view = ServerConfig(normalize=True).default_view.to_wire()
    assert "default view" in str(difference(MODEL, MODEL, VIEW, other_view))


def test_clients_are_not_told_where_the_keys_are() -> None:
    told = public_settings(ServerConfig(**KEYS))
    assert told["encrypted"]
    assert not any("/k/" in str(value) for value in told.values())
    missing = {entry.name for entry in option_fields()} - told.keys()
    assert missing == {*KEYS, "worker_keys", "admin_keys"}
    assert not public_settings(ServerConfig())["encrypted"]


# keyring


def add_key(folder: Path, name: str) -> str:
    """Write a pair whose public half is in the folder; returns that."""
    files = pair_files(name, folder / "secrets", folder)
    write_pair(name, files)
    return files.public.read_text().split('"')[1]


def test_a_key_is_allowed_while_it_is_in_the_folder(tmp_path: Path) -> None:
    keyring = Keyring(tmp_path)
    assert keyring.refresh() == []
    assert keyring.names == {}
    alice = add_key(tmp_path, "alice")
    assert keyring.names == {}
    assert keyring.refresh() == []
    assert keyring.names == {alice: "alice"}
    (tmp_path / "alice.key").unlink()
    assert keyring.refresh() == []
    assert keyring.names == {}


def test_a_folder_that_has_not_changed_is_not_read(tmp_path: Path) -> None:
    add_key(tmp_path, "alice")
    keyring = Keyring(tmp_path)
    assert keyring.refresh() == []
    assert keyring.refresh() is None


def test_a_replaced_key_is_noticed(tmp_path: Path) -> None:
    add_key(tmp_path, "alice")
    keyring = Keyring(tmp_path)
    keyring.refresh()
    (tmp_path / "alice.key").unlink()
    (tmp_path / "secrets" / "alice.key_secret").unlink()
    renewed = add_key(tmp_path, "alice")
    assert keyring.refresh() == []
    assert keyring.names == {renewed: "alice"}


def test_a_folder_that_is_swapped_behind_a_link_is_noticed(tmp_path: Path) -> None:
    old, new, link = (tmp_path / name for name in ("old", "new", "link"))
    for folder, name in ((old, "alice"), (new, "bob")):
        folder.mkdir()
        add_key(folder, name)
    link.symlink_to(old)
    keyring = Keyring(link)
    keyring.refresh()
    assert list(keyring.names.values()) == ["alice"]
    link.unlink()
    link.symlink_to(new)
    assert keyring.refresh() == []
    assert list(keyring.names.values()) == ["bob"]


def test_a_file_that_is_no_key_is_named_and_lets_nobody_in(tmp_path: Path) -> None:
    alice = add_key(tmp_path, "alice")
    (tmp_path / "broken.key").write_text("nothing")
    (tmp_path / "notes.txt").write_text("nothing")
    (tmp_path / "lost.key").symlink_to(tmp_path / "nowhere")
    keyring = Keyring(tmp_path)
    (problem,) = keyring.refresh() or []
    assert "broken.key" in problem
    assert keyring.names == {alice: "alice"}


def test_a_key_that_cannot_be_reached_keeps_no_other_in(tmp_path: Path) -> None:
    alice, _ = add_key(tmp_path, "alice"), add_key(tmp_path, "bob")
    keyring = Keyring(tmp_path)
    keyring.refresh()
    (tmp_path / "loop.key").symlink_to(tmp_path / "loop.key")
    (tmp_path / "bob.key").unlink()
    (problem,) = keyring.refresh() or []
    assert "loop.key cannot be read" in problem
    assert keyring.names == {alice: "alice"}
    assert keyring.refresh() is None


def test_what_is_no_file_is_named_and_not_waited_for(tmp_path: Path) -> None:
    alice = add_key(tmp_path, "alice")
    os.mkfifo(tmp_path / "pipe.key")
    (tmp_path / "folder.key").mkdir()
    keyring = Keyring(tmp_path)
    problems = keyring.refresh() or []
    assert [problem.split("/")[-1] for problem in problems] == [
        "folder.key is no file",
        "pipe.key is no file",
    ]
    assert keyring.names == {alice: "alice"}


def test_a_key_that_may_be_read_now_is_read_again(tmp_path: Path) -> None:
    add_key(tmp_path, "alice")
    (tmp_path / "alice.key").chmod(0o200)
    keyring = Keyring(tmp_path)
    keyring.refresh()
    (tmp_path / "alice.key").chmod(0o644)
    assert keyring.refresh() == []
    assert list(keyring.names.values()) == ["alice"]


def test_a_secret_in_the_folder_is_complained_of(tmp_path: Path) -> None:
    add_key(tmp_path, "alice")
    secret = tmp_path / "secrets" / "alice.key_secret"
    (tmp_path / "alice.key").write_bytes(secret.read_bytes())
    keyring = Keyring(tmp_path)
    (problem,) = keyring.refresh() or []
    assert "holds a secret key" in problem
    assert secret.read_text().split('"')[3] not in problem
    assert list(keyring.names.values()) == ["alice"]


def test_without_its_folder_nobody_is_let_in_and_that_is_said_once(tmp_path: Path) -> None:
    folder = tmp_path / "clients"
    folder.mkdir()
    alice = add_key(folder, "alice")
    keyring = Keyring(folder)
    keyring.refresh()
    folder.rename(tmp_path / "elsewhere")
    (problem,) = keyring.refresh() or []
    assert "nobody is let in" in problem
    assert keyring.names == {}
    assert keyring.refresh() is None
    (tmp_path / "elsewhere").rename(folder)
    assert keyring.refresh() == []
    assert keyring.names == {alice: "alice"}


def test_a_fault_that_is_not_the_folders_shuts_nobody_out(tmp_path: Path) -> None:
    folder, link = tmp_path / "clients", tmp_path / "link"
    folder.mkdir()
    alice = add_key(folder, "alice")
    link.symlink_to(folder)
    keyring = Keyring(link)
    keyring.refresh()
    link.unlink()
    link.symlink_to(link)  # a loop: it is there, and cannot be read
    (problem,) = keyring.refresh() or []
    assert "cannot be read" in problem
    assert "nobody" not in problem
    assert keyring.names == {alice: "alice"}


# ZeroMQ's questions

SOME_KEY, _ = zmq.curve_keypair()
QUESTION = [b"1.0", b"7", b"clients", b"10.0.0.2", b"", b"CURVE", z85.decode(SOME_KEY)]


def test_a_question_is_read() -> None:
    assert ZapRequest.parse(QUESTION) == ZapRequest(b"7", "clients", "10.0.0.2", SOME_KEY.decode())


@pytest.mark.parametrize(
    ("given", "known"),
    [("::ffff:10.0.0.2", "10.0.0.2"), ("fe80::1%eth0", "fe80::1%eth0"), ("::1", "::1"), ("", "")],
)
def test_an_address_of_ipv4_is_the_same_at_a_socket_of_ipv6(given: str, known: str) -> None:
    frames = [*QUESTION[:3], given.encode(), *QUESTION[4:]]
    assert ZapRequest.parse(frames).address == known


def test_who_is_let_in_is_known_by_its_key() -> None:
    request = ZapRequest.parse(QUESTION)
    assert request.answer(is_allowed=True) == [b"1.0", b"7", b"200", b"OK", SOME_KEY, b""]
    assert request.answer(is_allowed=False)[2] == b"400"


@pytest.mark.parametrize(
    "rest", [[b"NULL"], [b"PLAIN", b"user", b"password"], [b"CURVE"], [b"CURVE", b"short"]]
)
def test_who_shows_no_key_is_never_let_in(rest: list[bytes]) -> None:
    request = ZapRequest.parse([*QUESTION[:5], *rest])
    assert request.key is None
    assert request.answer(is_allowed=True)[2] == b"400"


@pytest.mark.parametrize("frames", [[], QUESTION[:5], [b"2.0", *QUESTION[1:]]])
def test_what_is_no_question_is_an_error(frames: list[bytes]) -> None:
    with pytest.raises(ValueError, match=r"no ZAP 1\.0 request"):
        ZapRequest.parse(frames)


# failed handshakes


def test_a_failed_handshake_is_told_with_its_peer() -> None:
    handshakes = Handshakes({7: "10.0.0.2", 8: "10.0.0.3"}.get)
    assert handshakes.on(zmq.EVENT_ACCEPTED, 7) is None
    assert handshakes.on(zmq.EVENT_ACCEPTED, 8) is None
    assert handshakes.on(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL, NO_KEY) is None
    assert handshakes.on(zmq.EVENT_DISCONNECTED, 7) == ("10.0.0.2", WORDS[NO_KEY])
    assert handshakes.on(zmq.EVENT_DISCONNECTED, 8) is None  # it had come in


def test_a_descriptor_that_is_used_again_is_another_peer() -> None:
    addresses = {7: "10.0.0.2"}
    handshakes = Handshakes(addresses.get)
    handshakes.on(zmq.EVENT_ACCEPTED, 7)
    handshakes.on(zmq.EVENT_DISCONNECTED, 7)
    addresses[7] = "10.0.0.9"
    handshakes.on(zmq.EVENT_ACCEPTED, 7)
    handshakes.on(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL, WRONG_KEY)
    assert handshakes.on(zmq.EVENT_DISCONNECTED, 7) == ("10.0.0.9", WORDS[WRONG_KEY])


def test_a_peer_that_is_gone_at_once_has_no_address() -> None:
    handshakes = Handshakes({}.get)
    handshakes.on(zmq.EVENT_ACCEPTED, 7)
    handshakes.on(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL, 0x10000000)
    assert handshakes.on(zmq.EVENT_DISCONNECTED, 7) == (UNKNOWN, OTHER)


# lines in the log


def test_an_address_gets_a_line_a_minute_with_the_number_of_those_left_out() -> None:
    refusals = Refusals()
    assert refusals.line("10.0.0.2", "key", "no key", 0.0) == "refused 10.0.0.2: no key"
    assert refusals.line("10.0.0.2", "key", "no key", 1.0) is None
    assert refusals.line("10.0.0.2", "key", "no key", QUIET_S - 0.1) is None
    line = refusals.line("10.0.0.2", "key", "no key", QUIET_S)
    assert line == "refused 10.0.0.2: no key (2 more since the last line)"


def test_another_address_and_another_reason_get_their_own_lines() -> None:
    refusals = Refusals()
    assert refusals.line("10.0.0.2", "key", "no key", 0.0)
    assert refusals.line("10.0.0.3", "key", "no key", 0.0)
    assert refusals.line("10.0.0.2", "unknown", "its key abc", 0.0)
    assert refusals.line("10.0.0.2", "unknown", "its key def", 0.0) is None


def test_a_million_addresses_fill_no_disk() -> None:
    refusals = Refusals()
    lines = [refusals.line(str(n), "key", "no key", 0.0) for n in range(MAX_LINES + 5_000)]
    written = [line for line in lines if line]
    assert len(written) == MAX_LINES + 1
    assert OTHERS in written[-1]
    assert refusals.line("late", "key", "no key", QUIET_S) == "refused late: no key"
