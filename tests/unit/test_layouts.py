"""Layouts: how many workers share the cores."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import pytest

from bert_serving.server import layout_calibration
from bert_serving.server.cgroups import Cgroups, Memory
from bert_serving.server.config import ServerConfig
from bert_serving.server.layout_calibration import read_layout
from bert_serving.server.layouts import Layout, LayoutCalibration, calibrate_layout, layouts


def rates(measured: Mapping[int, float]) -> Callable[[Sequence[Layout]], list[float]]:
    return lambda pair: [measured[of.num_worker] for of in pair if of.num_worker in measured]


@pytest.mark.parametrize(
    ("num_cores", "expected"),
    [
        (1, [(1, 1)]),
        (2, [(1, 2), (2, 1)]),
        (4, [(1, 4), (2, 2), (4, 1)]),
        (6, [(1, 6)]),
        (8, [(1, 8), (2, 4)]),
        (64, [(1, 64), (2, 32), (4, 16), (8, 8), (16, 4)]),
    ],
)
def test_workers_are_doubled_while_each_has_enough_threads(
    num_cores: int, expected: list[tuple[int, int]]
) -> None:
    assert layouts(num_cores) == [Layout(*pair) for pair in expected]


@pytest.mark.parametrize(
    ("measured", "chosen"),
    [
        ({1: 100.0, 2: 109.0, 4: 500.0}, 1),
        ({1: 100.0, 2: 120.0, 4: 125.0}, 2),
        ({1: 100.0, 2: 120.0, 4: 140.0, 8: 160.0, 16: 200.0}, 16),
        ({1: 100.0, 2: 90.0}, 1),
    ],
)
def test_more_workers_must_gain_a_tenth(measured: dict[int, float], chosen: int) -> None:
    calibration = calibrate_layout(layouts(64), rates(measured))
    assert calibration is not None
    assert calibration.num_worker == chosen


@pytest.mark.parametrize(("second", "chosen"), [(119.0, 1), (121.0, 2)])
def test_workers_of_few_threads_must_gain_a_fifth(second: float, chosen: int) -> None:
    calibration = calibrate_layout(layouts(2), rates({1: 100.0, 2: second}))
    assert calibration is not None
    assert calibration.num_worker == chosen


def test_what_cannot_gain_any_more_is_not_measured() -> None:
    calibration = calibrate_layout(layouts(64), rates({1: 100.0, 2: 105.0, 4: 900.0}))
    assert calibration == LayoutCalibration(1, {1: 100.0, 2: 105.0})
    assert str(calibration) == "num_worker=1 (tokens/s by workers: 1: 100, 2: 105)"


def test_two_layouts_are_compared_by_what_was_measured_side_by_side() -> None:
    slower_later = iter([[100.0, 150.0], [50.0, 60.0], [40.0, 43.0]])
    calibration = calibrate_layout(layouts(64), lambda _: next(slower_later))
    assert calibration == LayoutCalibration(4, {1: 100.0, 2: 50.0, 4: 40.0, 8: 43.0})


def test_a_layout_that_the_memory_cannot_hold_ends_the_search() -> None:
    calibration = calibrate_layout(layouts(64), rates({1: 100.0, 2: 150.0}))
    assert calibration == LayoutCalibration(2, {1: 100.0, 2: 150.0})


def test_a_model_that_cannot_be_loaded_has_no_layout() -> None:
    assert calibrate_layout(layouts(8), rates({})) is None


def test_a_calibration_is_read_as_it_was_kept(tmp_path: Path) -> None:
    calibration = LayoutCalibration(2, {1: 100.0, 2: 150.5})
    file = tmp_path / "layout.json"
    assert read_layout(file) is None
    file.write_text(json.dumps(asdict(calibration)))
    assert read_layout(file) == calibration


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"num_worker": 3, "tokens_per_s": {"1": 1}}', "\xff"]
)
def test_what_is_no_calibration_is_measured_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    file = tmp_path / "layout.json"
    file.write_text(content, "latin-1")
    assert read_layout(file) is None
    assert "measuring again" in caplog.text


def test_a_container_has_what_its_limit_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cgroups, "memory", lambda _: None)
    of_machine = layout_calibration._available_kib()
    monkeypatch.setattr(Cgroups, "memory", lambda _: Memory(700 << 20, 9 << 20))
    assert layout_calibration._available_kib() == 9 << 10 < of_machine
    monkeypatch.setattr(Cgroups, "memory", lambda _: Memory(1 << 59, 1 << 59))
    assert layout_calibration._available_kib() < 1 << 49


def test_a_smaller_container_measures_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = set()
    for limit in (None, 700 << 20, 900 << 20):
        memory = limit and Memory(limit, limit)
        monkeypatch.setattr(Cgroups, "memory", lambda _, memory=memory: memory)
        paths.add(layout_calibration._path(ServerConfig(), 4))
    assert len(paths) == 3
