"""A short run of what `scripts/chaos` and `scripts/soak` do for hours, and of their judgement."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bert_serving.client.errors import Overloaded, RequestTimeout

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts" / "endurance"))

import account as accounts  # noqa: E402  # it lies beside the commands that use it
import samples  # noqa: E402


def run(command: str, *arguments: str) -> str:
    """Run a command of ours; returns what it has printed."""
    ran = subprocess.run(
        [ROOT / "scripts" / command, *arguments], capture_output=True, text=True, timeout=200
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.mark.slow
def test_nothing_is_wrong_lost_or_unanswered_while_faults_strike() -> None:
    report = run("chaos", "0.6", "7")
    for name in ("wrong", "lost", "unanswered in time"):
        assert f"{name:24}{0:>10}" in report
    assert "the server still answers" in report


@pytest.mark.parametrize(
    ("error", "verdict"), [(None, True), (Overloaded("full"), True), (RequestTimeout("no"), False)]
)
def test_a_call_that_nobody_answered_is_lost_and_a_typed_error_is_an_answer(
    error: Exception | None, verdict: bool
) -> None:
    account = accounts.Account()
    with account.asking("a call", 1.0):
        """It is answered."""
    with account.asking("another call", 1.0):
        if error is not None:
            raise error
    assert account.is_good is verdict
    assert account.sent.total() == 2


def test_a_wrong_answer_one_too_late_and_one_that_never_came_are_told_apart() -> None:
    account = accounts.Account()
    with account.asking("wrong", 1.0):
        raise accounts.WrongAnswer("other values")
    with account.asking("late", -accounts.MARGIN_S - 1.0):
        """It comes after its deadline."""
    account.ask("never", 1.0)
    account.close()
    assert account.wrong == ["wrong: other values"]
    assert account.unanswered == ["late: ended, but too late", "never: still open"]
    assert not account.is_good
    assert any("unanswered in time" in line and "2" in line for line in account.lines())


def sample(at: float, mib: float, latency_s: float) -> samples.Sample:
    return samples.Sample(at, {"broker": int(mib * 1024)}, [latency_s] * 200)


@pytest.mark.parametrize(
    ("mib", "latency_s", "grown"),
    [
        (20.0, 0.010, []),
        (20.9, 0.0104, []),
        (15.0, 0.005, []),
        (21.2, 0.010, ["broker"]),
        (20.0, 0.011, ["median latency", "p99 latency"]),
    ],
)
def test_what_has_grown_by_more_than_a_twentieth_is_named(
    mib: float, latency_s: float, grown: list[str]
) -> None:
    run = [sample(at, 20.0, 0.010) for at in range(60)]
    run += [sample(60 + at, mib, latency_s) for at in range(60)]
    first, last = samples.between(run, 0, 60), samples.between(run, 60, 120)
    found = list(samples.figures(first, last))
    assert [figure.name for figure in found if figure.has_grown] == grown
    assert [("GROWN" in figure.line()) for figure in found].count(True) == len(grown)
    assert len(list(samples.table(run, rows=6))) == 7
