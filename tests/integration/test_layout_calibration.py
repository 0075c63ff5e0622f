"""How many workers a server starts is measured once, and kept."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from server_process import SECOND, Starter

pytestmark = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) not in (2, 3), reason="written for two workers at most"
)
MEASURING = "measuring how many workers are best"


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.delenv("BERT_SERVING_NUM_WORKER")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "bert-serving"


def test_the_number_of_workers_is_measured_at_the_first_start_only(
    cache: Path, start_server: Starter
) -> None:
    options = ("-cpu", "-max_seq_len", "32", "-max_batch_tokens", "256")
    first = start_server(*options, embedded=True)
    assert MEASURING in first.log
    (file,) = cache.glob("layout-*.json")
    calibration = json.loads(file.read_text())
    assert {"1", "2"} <= set(calibration["tokens_per_s"])
    assert len(first.status()["workers"]) == calibration["num_worker"]
    first.stop()

    other = 3 - calibration["num_worker"]
    file.write_text(json.dumps({**calibration, "num_worker": other}))
    second = start_server(*options, embedded=True)
    assert MEASURING not in second.log
    assert len(second.status()["workers"]) == other
    with second.client() as client:
        assert client.encode("a text").shape == (384,)


def test_a_number_that_is_given_is_not_measured(cache: Path, start_server: Starter) -> None:
    options = ("-cpu", "-num_worker", "2", "-max_batch_tokens", "256")
    server = start_server(*options, embedded=True)
    assert MEASURING not in server.log
    assert not list(cache.glob("layout-*.json"))
    assert len(server.status()["workers"]) == 2


def test_a_model_that_cannot_be_loaded_is_named_by_its_worker(
    cache: Path, tmp_path: Path, start_server: Starter
) -> None:
    server = start_server("-cpu", "-model_dir", str(tmp_path / "none"), wait=False)
    assert server.process.wait(60 * SECOND) == 3
    assert "none" in server.last_line and "cannot start" in server.last_line
