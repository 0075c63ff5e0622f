"""`scripts/bench --check` without measuring: what counts as worse, and what is kept."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

from benchmarks.check import (  # noqa: E402
    ANY,
    KEPT,
    TRIES,
    Figure,
    best_of_tries,
    read_kept,
    table,
    worse,
    write_kept,
)
from benchmarks.goals import Goal  # noqa: E402

KEPT_FIGURES = {"a": Figure(2.0, 0.1), "b": Figure(4.0, 0.5)}


class Measuring:
    """Ratios that come one after the other."""

    def __init__(self, *ratios: Mapping[str, float]) -> None:
        self.tries = 0
        self._ratios: Iterator[Mapping[str, float]] = iter(ratios)

    def __call__(self) -> Mapping[str, float]:
        self.tries += 1
        return next(self._ratios)


def test_what_is_within_its_tolerance_is_not_worse() -> None:
    assert worse({"a": 1.81, "b": 2.01}, KEPT_FIGURES) == []
    assert worse({"a": 1.79, "b": 2.01}, KEPT_FIGURES) == ["a"]
    assert worse({"never kept": 0.0}, KEPT_FIGURES) == []


def test_what_is_good_is_measured_once() -> None:
    measure = Measuring({"a": 1.9})
    assert best_of_tries([measure], KEPT_FIGURES) == {"a": 1.9}
    assert measure.tries == 1


def test_what_is_too_low_is_tried_again_before_it_counts() -> None:
    measure = Measuring({"a": 1.0, "b": 4.0}, {"a": 1.9, "b": 1.0})
    assert best_of_tries([measure], KEPT_FIGURES) == {"a": 1.9, "b": 4.0}
    assert measure.tries == 2


def test_what_stays_too_low_counts_with_its_best() -> None:
    measure = Measuring(*({"a": value} for value in (1.0, 1.5, 1.2)))
    measured = best_of_tries([measure], KEPT_FIGURES)
    assert measured == {"a": 1.5}
    assert measure.tries == TRIES
    assert worse(measured, KEPT_FIGURES) == ["a"]


def test_a_table_names_what_got_worse() -> None:
    titles, first, second, third = table({"a": 1.0, "b": 4.0, "new": 1.0}, KEPT_FIGURES)
    assert "kept" in titles
    assert first.endswith("WORSE") and "2.000" in first and "1.800" in first
    assert "WORSE" not in second + third


def test_kept_figures_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    assert read_kept(path) == {}
    write_kept(path, {"a processor": KEPT_FIGURES})
    assert read_kept(path) == {"a processor": KEPT_FIGURES}


def test_there_are_figures_for_processors_that_nobody_has_measured() -> None:
    kept = read_kept(KEPT)
    assert all(figures.keys() == kept[ANY].keys() for figures in kept.values())
    assert all(0 < figure.tolerance < 1 for figures in kept.values() for figure in figures.values())


@pytest.mark.parametrize(
    ("measured", "less_is_more", "verdict"),
    [
        (3.0, False, "reached"),
        (2.0, False, "enough"),
        (1.0, False, "MISSED"),
        (float("nan"), False, "MISSED"),
        (1.0, True, "MISSED"),
    ],
)
def test_a_goal_is_reached_enough_or_missed(
    measured: float, less_is_more: bool, verdict: str
) -> None:
    goal, must = (0.5, 0.9) if less_is_more else (3.0, 1.5)
    assert Goal("a goal", measured, goal, must, less_is_more).verdict == verdict
