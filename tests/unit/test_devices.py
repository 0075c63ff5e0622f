"""Placements: which device and cores each worker gets."""

from __future__ import annotations

import os
from typing import Any

import pytest

from bert_serving.server.cgroups import Cgroups
from bert_serving.server.config import ServerConfig
from bert_serving.server.devices import Placement, PlacementError, place_workers, visible_gpus


@pytest.fixture(autouse=True)
def eight_cores_and_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(Cgroups, "cpu_quota", lambda _: None)


def placed(**options: Any) -> list[Placement]:
    return place_workers(ServerConfig(**options))


def devices(**options: Any) -> list[str]:
    return [placement.device for placement in placed(**options)]


def test_without_a_gpu_one_worker_has_all_cores() -> None:
    assert placed() == [Placement("cpu", 8, tuple(range(8)))]


@pytest.mark.parametrize("num_worker", [2, 3, 5, 8])
def test_workers_share_the_cores_evenly_and_completely(num_worker: int) -> None:
    shares = [placement.cores for placement in placed(num_worker=num_worker)]
    assert [core for share in shares for core in share] == list(range(8))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert [placement.num_threads for placement in placed(num_worker=num_worker)] == [
        len(share) for share in shares
    ]


def test_only_the_cores_of_this_process_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {7, 3}, raising=False)
    assert [placement.cores for placement in placed(num_worker=2)] == [(3,), (7,)]


def test_more_workers_than_cores_are_pinned_nowhere() -> None:
    assert placed(num_worker=9) == [Placement("cpu", 1, ())] * 9


@pytest.mark.parametrize(("quota", "threads"), [(2.5, 2), (0.5, 1), (7.99, 7)])
def test_a_container_with_less_time_has_threads_for_it_and_no_cores_of_its_own(
    monkeypatch: pytest.MonkeyPatch, quota: float, threads: int
) -> None:
    monkeypatch.setattr(Cgroups, "cpu_quota", lambda _: quota)
    assert placed() == [Placement("cpu", threads, ())]
    assert placed(num_worker=2) == [Placement("cpu", max(threads // 2, 1), ())] * 2
    assert placed(num_threads=5) == [Placement("cpu", 5, ())]


def test_a_limit_beyond_its_cores_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cgroups, "cpu_quota", lambda _: 8.0)
    assert placed() == [Placement("cpu", 8, tuple(range(8)))]


def test_the_number_of_threads_can_be_set() -> None:
    assert [placement.num_threads for placement in placed(num_worker=2, num_threads=3)] == [3, 3]


def test_each_visible_gpu_gets_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert visible_gpus() == [0, 1]  # torch numbers the visible ones anew
    assert devices() == ["cuda:0", "cuda:1"]
    assert devices(cpu=True) == ["cpu"]


def test_workers_go_round_the_gpus_of_the_map(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    assert devices(device_map=(3, 1)) == ["cuda:3", "cuda:1"]
    assert devices(device_map=(3, 1), num_worker=3) == ["cuda:3", "cuda:1", "cuda:3"]
    assert devices(device_map=(2, 2)) == ["cuda:2", "cuda:2"]
    assert devices(num_worker=1) == ["cuda:0"]


def test_several_workers_share_one_gpu_and_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert devices(num_worker=3) == ["cuda:0"] * 3
    assert devices(num_worker=3, device_map=(0,)) == ["cuda:0"] * 3
    assert [placement.cores for placement in placed(num_worker=2)] == [(0, 1, 2, 3), (4, 5, 6, 7)]


@pytest.mark.parametrize("names", ["", "-1", " ", "NoDevFiles", "none", "-1,0", "void,0"])
def test_no_gpu_is_visible_where_the_environment_hides_them(
    monkeypatch: pytest.MonkeyPatch, names: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", names)
    assert visible_gpus() == []


@pytest.mark.parametrize(
    ("names", "number"),
    [("0", 1), (" 3 , 5 ", 2), ("GPU-8932f937,MIG-GPU-8932f937/1/2", 2), ("1,-1,2", 1), ("0,", 1)],
)
def test_gpus_are_visible_up_to_the_first_word_that_names_none(
    monkeypatch: pytest.MonkeyPatch, names: str, number: int
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", names)
    assert len(visible_gpus()) == number


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PlacementError, match="-device_map 3: no such GPU, none is visible"):
        placed(device_map=(3,))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(PlacementError, match="-device_map 2 3: no such GPU, visible are 0 1"):
        placed(device_map=(0, 2, 3))


def test_a_map_of_gpus_contradicts_cpu() -> None:
    with pytest.raises(PlacementError, match="give one of the two"):
        placed(device_map=(0,), cpu=True)
