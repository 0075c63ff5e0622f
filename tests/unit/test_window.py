"""What one connection keeps in flight."""

from __future__ import annotations

from bert_serving.client.chunking import Chunk
from bert_serving.client.messages import Limits
from bert_serving.client.window import Window

ROW = Chunk(0, 1, b"x" * 10)


def a_window(**limits: int) -> Window:
    window = Window()
    window.open(Limits(**{"max_rows": 8, "max_bytes": 1000, "window": 2, **limits}))
    return window


def fill(window: Window, chunk: Chunk) -> int:
    """Send until there is no room; return how many requests that took."""
    sent = 0
    while window.has_room:
        window.add(chunk)
        sent += 1
    return sent


def test_single_rows_may_be_as_many_as_the_rows_of_full_requests() -> None:
    assert fill(a_window(), ROW) == 16
    assert fill(a_window(), Chunk(0, 8, b"x")) == 2


def test_long_rows_are_bounded_by_their_bytes() -> None:
    assert fill(a_window(), Chunk(0, 1, b"x" * 500)) == 4


def test_one_request_may_always_be_in_flight_however_large() -> None:
    assert fill(a_window(window=1), Chunk(0, 100, b"x" * 5000)) == 1


def test_an_answer_makes_room_for_as_much() -> None:
    window = a_window()
    fill(window, ROW)
    window.remove(ROW)
    assert fill(window, ROW) == 1


def test_it_halves_when_told_to_and_grows_back_by_one_up_to_the_limit() -> None:
    window = a_window(window=4, max_rows=1)
    for _ in range(5):
        window.shrink()
    assert fill(window, ROW) == 1
    for allowed in (2, 3, 4, 4):
        window.grow()
        fill(window, ROW)
        assert window._rows == allowed
