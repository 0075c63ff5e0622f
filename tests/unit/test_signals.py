"""What a server makes of the signals that it gets."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from bert_serving.server import signals
from bert_serving.server.signals import ONE_S, Signals

NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Have this process's own handlers back when a test is over."""
    own = {number: signal.getsignal(number) for number in NUMBERS}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also if this runs under nohup
    yield
    for number, handler in own.items():
        signal.signal(number, handler)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=100.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(signals, "time", clock)
    return clock


@pytest.fixture
def heard(clock: SimpleNamespace) -> Iterator[Signals]:
    with Signals() as heard:
        yield heard


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_same_signal_in_the_same_moment_is_one_wish(
    heard: Signals, clock: SimpleNamespace, number: int
) -> None:
    signal.raise_signal(number)
    signal.raise_signal(number)  # to the process, and to its group
    assert heard.stops == 1
    clock.now += 2 * ONE_S
    signal.raise_signal(number)
    assert heard.stops == 2


def test_another_signal_is_a_second_wish(heard: Signals) -> None:
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGINT)
    assert heard.stops == 2


def test_a_command_is_never_a_second_wish(heard: Signals) -> None:
    heard.stop()
    heard.stop()
    assert heard.stops == 1
    signal.raise_signal(signal.SIGTERM)
    assert heard.stops == 2


def test_a_hangup_has_the_model_loaded_anew_unless_it_is_ignored(heard: Signals) -> None:
    assert not heard.is_to_reload
    signal.raise_signal(signal.SIGHUP)
    assert heard.is_to_reload
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with Signals() as under_nohup:
        signal.raise_signal(signal.SIGHUP)
    assert not under_nohup.is_to_reload


def test_a_signal_after_the_end_changes_nothing() -> None:
    with Signals() as heard:
        pass
    for number in NUMBERS:
        signal.raise_signal(number)
    assert (heard.stops, heard.is_to_reload) == (0, False)
