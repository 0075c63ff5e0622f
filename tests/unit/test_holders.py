"""Which clients' connections have ended, as their descriptors tell."""

from __future__ import annotations

import os

from bert_serving.server.holders import Holders, socket_of


def test_who_has_another_ones_descriptor_shows_that_this_one_has_ended() -> None:
    sockets = {7: 100, 8: 101}
    holders = Holders(sockets.get)
    assert holders.add(7, b"a") == set()
    assert holders.add(8, b"b") == set()
    sockets[7] = 102
    assert holders.add(7, b"c") == {b"a"}
    assert holders.add(7, b"c") == set()
    assert holders.is_alone(7, b"c")


def test_who_was_heard_after_its_end_is_neither_taken_for_another_nor_ends_it() -> None:
    sockets = {7: 100}
    holders = Holders(sockets.get)
    assert holders.add(7, b"early") == set()
    assert holders.add(7, b"late") == set()  # whose descriptor it was before
    assert not holders.is_alone(7, b"early")
    holders.remove(7, b"late")
    assert holders.is_alone(7, b"early")
    holders.add(7, b"late")
    sockets[7] = 101
    assert holders.add(7, b"next") == {b"early", b"late"}


def test_who_was_heard_when_the_descriptor_was_closed_is_not_noted() -> None:
    holders = Holders({}.get)
    assert holders.add(7, b"a") is None
    assert not holders.is_alone(7, b"a")
    assert holders.ended() == []


def test_all_that_have_ended_are_found() -> None:
    sockets: dict[int, int] = {7: 100, 8: 101, 9: 102}
    holders = Holders(sockets.get)
    for descriptor, route in ((7, b"a"), (8, b"b"), (9, b"c")):
        holders.add(descriptor, route)
    assert holders.ended() == []
    del sockets[7]
    sockets[8] = 103
    assert holders.ended() == [b"a", b"b"]
    for descriptor, route in ((7, b"a"), (8, b"b"), (9, b"c"), (9, b"c")):
        holders.remove(descriptor, route)
    assert holders.ended() == []


def test_a_number_tells_an_open_file_from_the_next_with_its_descriptor() -> None:
    read, write = os.pipe()
    try:
        assert socket_of(read) == socket_of(read)
        before = socket_of(read)
        other, unused = os.pipe()
        os.close(unused)
        os.dup2(other, read)
        os.close(other)
        assert socket_of(read) not in (None, before)
    finally:
        os.close(read)
        os.close(write)
    assert socket_of(read) is None
