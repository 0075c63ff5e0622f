from __future__ import annotations

import errno
import json
import resource
import socket as sockets
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bert_serving.client.assembly import Encoding
from bert_serving.client.errors import ServerUnreachable, VersionMismatch
from bert_serving.server.cli.doctor import chosen
from bert_serving.server.config import ServerConfig
from bert_serving.server.doctor import (
    gpus,
    installation,
    key_files,
    machine,
    model_files,
    places,
    ports,
    report,
    running,
)
from bert_serving.server.doctor.checks import CHECKS, Settings
from bert_serving.server.doctor.examination import read_findings
from bert_serving.server.doctor.finding import OK, PROBLEM, WARNING, Finding
from bert_serving.server.doctor.installation import Requirement
from bert_serving.server.doctor.running import Split

GB = 1_000_000_000
V4 = {"avx2", "avx512f", "avx512_vnni", "avx512_bf16"}
READY = {"id": 0, "state": "ready"}
STATUS = {
    "state": "ready",
    "server_version": "2.0.0",
    "num_worker": 1,
    "workers": [READY],
    "model": {"name": "m"},
}

JUDGED: list[tuple[Finding, str, str]] = [
    # packages
    (
        installation.judge_packages("3.12", [Requirement("torch", ">=2.8", "2.13", fits=True)]),
        OK,
        "torch 2.13",
    ),
    (
        installation.judge_packages("3.12", [Requirement("torch", ">=2.8", "2.1", fits=False)]),
        PROBLEM,
        "torch 2.1 (needed: >=2.8)",
    ),
    (
        installation.judge_packages("3.12", [Requirement("torch", "", None, fits=False)]),
        PROBLEM,
        "torch is missing (needed: any)",
    ),
    (installation.judge_libzmq("4.3.5", {"curve": True, "ipc": True}), OK, "CURVE"),
    (installation.judge_libzmq("4.3.5", {"curve": False, "ipc": True}), WARNING, "without enc"),
    (installation.judge_libzmq("4.3.5", {"curve": True, "ipc": False}), PROBLEM, "ipc"),
    (installation.judge_kernels(["avx512", "avx2"], "avx512", ""), OK, "avx512"),
    (installation.judge_kernels(["avx512", "avx2"], "avx2", "no file"), WARNING, "can avx512"),
    (installation.judge_kernels(["avx2"], None, "no file"), WARNING, "torch's own: no file"),
    (installation.judge_kernels([], None, ""), WARNING, "none for this processor"),
    # machine
    (machine.judge_processor("x86_64", V4), OK, "AVX2, AVX-512, VNNI, bfloat16"),
    (machine.judge_processor("x86_64", {"avx2"}), OK, "no bfloat16"),
    (machine.judge_processor("x86_64", {"sse2"}), WARNING, "without AVX2"),
    (machine.judge_processor("aarch64", set()), OK, "aarch64"),
    (machine.judge_cores(8, 4, None, 0.5), OK, "4 of 8"),
    (machine.judge_cores(8, 8, 1.5, 0.5), WARNING, "only 1.5 cores' worth"),
    (machine.judge_cores(8, 2, 2.0, 0.5), OK, "2 of 8"),
    (machine.judge_cores(2, 2, None, 9.0), WARNING, "load 9.0"),
    (machine.judge_descriptors(1024, 1 << 20), OK, "1048576"),
    (machine.judge_descriptors(1024, resource.RLIM_INFINITY), OK, "as many as wanted"),
    (machine.judge_descriptors(1024, 1024), WARNING, "1024"),
    (machine.judge_descriptors(64, 64), PROBLEM, "64"),
    (machine.judge_clock(2026, 0.05, 0.05), OK, "steady"),
    (machine.judge_clock(1970, 0.05, 0.05), WARNING, "1970"),
    (machine.judge_clock(2026, 0.05, 3600.05), WARNING, "3600.05 s"),
    # places
    (places.judge_control_folder(Path("/run/user/7/b"), writable=True), OK, "/run/user/7/b"),
    (places.judge_control_folder(Path("/run/b"), writable=False), PROBLEM, "nothing can be"),
    (places.judge_control_folder(Path("/" + "b" * 100), writable=True), PROBLEM, "too long"),
    (places.judge_cache(Path("/c"), writable=True, free_bytes=9 * GB), OK, "9.0 GB"),
    (places.judge_cache(Path("/c"), writable=True, free_bytes=GB), WARNING, "1.0 GB"),
    (places.judge_cache(Path("/c"), writable=False, free_bytes=9 * GB), WARNING, "nothing"),
    (places.judge_disk("/tmp", 9 * GB), OK, "9.0 GB"),
    (places.judge_disk("/tmp", 50_000_000), WARNING, "50 MB"),
    (places.judge_disk("/tmp", 5_000), PROBLEM, "full"),
    # ports
    (ports.judge_port("port", "127.0.0.1", 5555, None, ""), OK, "free on 127.0.0.1"),
    (ports.judge_port("port", "h", 5555, errno.EADDRINUSE, "process 7: x"), PROBLEM, "process 7"),
    (ports.judge_port("port", "h", 5555, errno.EADDRINUSE, ""), PROBLEM, "another user"),
    (ports.judge_port("port", "h", 80, errno.EACCES, ""), PROBLEM, "not allowed"),
    (ports.judge_port("port", "h", 5555, errno.EADDRNOTAVAIL, ""), PROBLEM, "EADDRNOTAVAIL"),
    (key_files.judge_keys("server.key_secret", {"client_keys": 2}), OK, "2 client key"),
    (key_files.judge_keys("server.key_secret", {"client_keys": 0}), WARNING, "no client has a key"),
    (
        key_files.judge_keys("k", {"client_keys": 1, "worker_keys": 0, "admin_keys": 0}),
        WARNING,
        "no worker or administrator has a key in -worker_keys or -admin_keys",
    ),
    # devices
    (gpus.judge_cpu(["cpu"], [4]), OK, "of 4 thread"),
    (gpus.judge_gpus(["cuda:0"], 1, "12.8", ["H200"]), OK, "H200 (CUDA 12.8)"),
    (gpus.judge_gpus(["cuda:0"], 1, None, []), PROBLEM, "this torch is for CPUs"),
    (gpus.judge_gpus(["cuda:0"], 2, "12.8", ["H200"]), PROBLEM, "finds 1"),
    *[(finding, WARNING, "no GPU is visible") for finding in gpus.judge_driver(is_there=True)],
    # model
    (model_files.judge_memory(GB, 4 * GB, GB), OK, "1.0 GB needed, 4.0 GB available"),
    (model_files.judge_memory(3 * GB, 4 * GB, 2 * GB), WARNING, "tight"),
    (model_files.judge_memory(5 * GB, 4 * GB, GB), PROBLEM, "5.0 GB needed"),
    (model_files.judge_memory(GB, None, GB), WARNING, "cannot be read"),
    (model_files.judge_speed(5e4, 500.0, 1000.0, 1.0, 0.1), OK, "50%"),
    (model_files.judge_speed(5e4, 100.0, 1000.0, 1.0, 7.5), WARNING, "10%"),
    (model_files.judge_speed(5e4, None, 1000.0, 1.0, 0.1), OK, "through transformers"),
    (model_files.judge_speed(5e4, 500.0, 1000.0, float("nan"), 0.1), PROBLEM, "no numbers"),
    (model_files.judge_speed(5e4, 500.0, 1000.0, 0.0, 0.1), PROBLEM, "no numbers"),
    # a server
    (running.judge_connection("h", 1, ConnectionRefusedError()), PROBLEM, "nothing listens on h:1"),
    (running.judge_connection("h", 1, TimeoutError()), PROBLEM, "does not answer a connection"),
    (running.judge_connection("h", 1, sockets.gaierror(-2, "unknown")), PROBLEM, "no address"),
    (running.judge_connection("h", 1, OSError(101, "unreachable")), PROBLEM, "unreachable"),
    (running.judge_answer("h", 1, ServerUnreachable("x")), PROBLEM, "but says nothing"),
    (running.judge_answer("h", 1, VersionMismatch("x")), PROBLEM, "VersionMismatch: x"),
    (running.judge_split(Split(9.0, 0.5, 0.1, 0.1, 8.0)), OK, "compute 8.0"),
    (running.judge_split(Split(300.0, 0.5, 280.0, 0.1, 8.0)), WARNING, "queue 280.0"),
    (running.judge_split(Split(90.0, 80.0, 0.1, 0.1, 8.0)), WARNING, "round trip 80.0"),
]


@pytest.mark.parametrize(("finding", "level", "seen"), JUDGED, ids=lambda value: str(value)[:40])
def test_facts_are_judged(finding: Finding, level: str, seen: str) -> None:
    assert finding.level == level
    assert seen in finding.seen
    assert bool(finding.advice) == (level != OK)
    assert "\n" not in finding.seen + finding.advice


@pytest.mark.parametrize(
    ("status", "level", "seen"),
    [
        ({}, OK, "2.0.0, ready: m, 1 worker(s) ready"),
        ({"state": "starting", "workers": []}, PROBLEM, "starting"),
        ({"num_worker": 2}, WARNING, "1 worker(s) ready of 2"),
        ({"statistic": {"num_refused": {"overloaded": 3}, "num_failed": {}}}, OK, "3 overloaded"),
    ],
)
def test_what_a_server_says_of_itself_is_judged(
    status: dict[str, Any], level: str, seen: str
) -> None:
    (finding,) = running.judge_status({**STATUS, **status})
    assert (finding.level, finding.subject) == (level, "server")
    assert seen in finding.seen


def test_the_times_of_several_calls_become_their_medians() -> None:
    def call(queue: float) -> Encoding:
        return Encoding({}, np.zeros(1), np.zeros(1), queue_ms=queue, compute_ms=5.0)

    times = running.split(
        [1.0, 9.0, 2.0], [(10.0, call(1.0)), (30.0, call(3.0)), (20.0, call(2.0))]
    )
    assert times == Split(20.0, 2.0, 2.0, 0.0, 5.0)


# the examination


def test_settings_reach_the_process_of_a_check_as_they_are() -> None:
    settings = Settings(ServerConfig(pooling_layer=(-1, -2), model_dir="x"), "127.0.0.1")
    assert Settings.from_json(settings.to_json()) == settings


def test_what_is_asked_for_decides_which_checks_are_made() -> None:
    here, there = Settings(ServerConfig()), Settings(ServerConfig(), "127.0.0.1")
    assert set(chosen(here, is_remote=False, is_quick=False)) == CHECKS.keys() - {"server"}
    assert "speed" not in chosen(here, is_remote=False, is_quick=True)
    beside = set(chosen(there, is_remote=False, is_quick=False))
    assert beside == CHECKS.keys() - {"ports", "speed"}
    assert set(chosen(there, is_remote=True, is_quick=False)) == {"packages", "libzmq", "server"}


@pytest.mark.parametrize(
    ("returncode", "out", "errors", "seen"),
    [
        (1, b"", b"Traceback\n  x\nKeyError: 'a'\n", "exited with status 1: KeyError: 'a'"),
        (-11, b"", b"", "was ended by SIGSEGV"),
        (0, b"no json", b"", "exited with status 0"),
        (0, b'[{"no": "finding"}]', b"", "exited with status 0"),
    ],
)
def test_a_check_that_crashes_is_a_finding(
    returncode: int, out: bytes, errors: bytes, seen: str
) -> None:
    (finding,) = read_findings("disk", returncode, out, errors)
    assert (finding.level, finding.subject) == (PROBLEM, "disk")
    assert seen in finding.seen
    assert "Traceback" not in finding.seen


def test_findings_are_told_in_a_table_and_in_json() -> None:
    found = [Finding("a", OK, "well"), Finding("b", WARNING, "slow", "do this")]
    assert report.as_line(found[0]).split() == ["ok", "a", "well"]
    assert report.as_line(found[1]).split("\n")[1].strip() == "→ do this"
    assert report.summary(found) == "1 ok, 1 warnings, 0 problems"
    assert not report.has_problem(found)
    told = json.loads(report.as_json([*found, Finding("c", PROBLEM, "broken", "mend it")]))
    assert (told["version"], told["ok"]) == (1, False)
    assert told["findings"][2] == {
        "subject": "c",
        "level": "problem",
        "seen": "broken",
        "advice": "mend it",
    }
