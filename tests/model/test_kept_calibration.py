"""A calibration is measured once for a model on a machine."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bert_serving.server.model import encoders
from bert_serving.server.model.calibration import Calibration
from bert_serving.server.model.encoder_replica import EncoderReplica
from bert_serving.server.model.kept_calibration import (
    calibration_path,
    keep_calibration,
    read_calibration,
)

CALIBRATION = Calibration(512, {256: 900.0, 512: 1000.5}, 0.8)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "bert-serving"


def test_a_calibration_is_read_as_it_was_kept(cache):
    path = cache / "calibration.json"
    assert read_calibration(path) is None
    keep_calibration(path, CALIBRATION)
    assert read_calibration(path) == CALIBRATION
    assert [file.name for file in cache.iterdir()] == ["calibration.json"]


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"\xff", b"[]", b"{}", b'{"max_batch_tokens": 1, "tokens_per_s": 2}'),
        *(
            b'{"max_batch_tokens": %s, "tokens_per_s": {}, "share": null}' % tokens
            for tokens in (b"0", b"-5", b"1e999", b"1e300", b"2147483648", b"null")
        ),
        b'{"max_batch_tokens": 512, "tokens_per_s": {"512": 1}, "share": "most"}',
    ],
)
def test_what_is_no_calibration_is_measured_again(cache, caplog, content):
    path = cache / "calibration.json"
    path.parent.mkdir()
    path.write_bytes(content)
    assert read_calibration(path) is None
    assert "measuring again" in caplog.text


def test_a_folder_that_cannot_be_written_costs_only_the_keeping(cache, caplog):
    cache.write_text("a file where the folder should be")
    with caplog.at_level(logging.INFO):
        keep_calibration(cache / "calibration.json", CALIBRATION)
    assert "not kept" in caplog.text


def test_another_model_type_or_number_of_threads_has_its_own(monkeypatch):
    cpu = torch.device("cpu")
    paths = {
        calibration_path({"hidden_size": 1}, torch.float32, cpu),
        calibration_path({"hidden_size": 2}, torch.float32, cpu),
        calibration_path({"hidden_size": 1}, torch.bfloat16, cpu),
    }
    assert calibration_path({"hidden_size": 1}, torch.float32, cpu) in paths
    monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    paths.add(calibration_path({"hidden_size": 1}, torch.float32, cpu))
    assert len(paths) == 4


@pytest.fixture
def wait_for_cores(monkeypatch):
    """Have this process have waited for a share of its cores' time, whoever else is testing."""

    def wait(share):
        threads = torch.get_num_threads()
        monkeypatch.setattr(encoders, "waited_s", lambda: share * threads * time.perf_counter())

    return wait


def test_the_next_start_takes_what_is_kept(load, tiny_dir, cache, caplog, wait_for_cores):
    wait_for_cores(0.05)
    directory, _ = tiny_dir()
    with caplog.at_level(logging.INFO):
        first = load(directory, max_batch_tokens=None)
    (path,) = cache.glob("calibration-*.json")
    assert json.loads(path.read_text())["max_batch_tokens"] == first.max_batch_tokens
    assert "of the machine's limit" in caplog.text
    path.write_text(json.dumps({"max_batch_tokens": 77, "tokens_per_s": {}, "share": None}))
    assert load(directory, max_batch_tokens=None).max_batch_tokens == 77


def test_a_broken_file_is_warned_of_once_and_replaced(
    load, tiny_dir, cache, caplog, wait_for_cores
):
    wait_for_cores(0.05)
    directory, _ = tiny_dir()
    settings = json.loads((directory / "config.json").read_text())
    path = calibration_path(settings, torch.float32, torch.device("cpu"))
    keep_calibration(path, Calibration(0, {}))
    replica = load(directory, max_batch_tokens=None)
    assert caplog.text.count("measuring again") == 1
    assert read_calibration(path).max_batch_tokens == replica.max_batch_tokens > 0


def test_what_others_have_disturbed_is_not_kept(load, tiny_dir, cache, caplog, wait_for_cores):
    wait_for_cores(0.4)
    directory, _ = tiny_dir()
    assert load(directory, max_batch_tokens=None).max_batch_tokens > 0
    assert not list(cache.glob("calibration-*.json"))
    assert "others had 40 % of these cores" in caplog.text


def test_workers_that_measure_at_once_take_what_the_first_has_kept(
    load, tiny_dir, cache, caplog, wait_for_cores, monkeypatch
):
    wait_for_cores(0.05)
    directory, _ = tiny_dir()
    settings = json.loads((directory / "config.json").read_text())
    path = calibration_path(settings, torch.float32, torch.device("cpu"))
    measure = EncoderReplica.calibrate

    def measure_while_another_is_done(replica):
        keep_calibration(path, Calibration(77, {77: 1.0}))
        return measure(replica)

    monkeypatch.setattr(EncoderReplica, "calibrate", measure_while_another_is_done)
    with caplog.at_level(logging.INFO):
        assert load(directory, max_batch_tokens=None).max_batch_tokens == 77
    assert "as another worker has it: max_batch_tokens=77" in caplog.text
    assert list(cache.glob("calibration-*.json")) == [path]
    assert json.loads(path.read_text())["max_batch_tokens"] == 77


TWO_ON_ONE_CORE = """
import os, subprocess, sys, time
from bert_serving.server.model.calibration import waited_s
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
try:
    before, started = waited_s(), time.perf_counter()
    while time.perf_counter() < started + 1:
        pass
    print(waited_s() - before)
finally:
    other.kill()
    other.wait()
"""


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="no accounts of waiting here")
def test_what_others_take_of_a_core_is_told():
    done = subprocess.run(
        [sys.executable, "-c", TWO_ON_ONE_CORE], capture_output=True, text=True, check=True
    )
    assert 0.2 < float(done.stdout) < 1.1
