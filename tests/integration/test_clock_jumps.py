"""The system's clock is set, by a person or a program, while calls are under way."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib import util
from pathlib import Path

import pytest
from server_process import SECOND, ServerProcess, Starter, eventually

DAY_S = 86_400
JUMPS = (DAY_S, -DAY_S, 0)  # from the true time
CALLS = """
import sys
import numpy as np
from bert_serving.client import BertClient
from bert_serving.server.model.fake import fake_embedding
texts = [f"text {number}" for number in range(50)]
expected = np.stack([fake_embedding(text, 384) for text in texts])
with BertClient(port=int(sys.argv[1]), timeout=int(sys.argv[2])) as client:
    for number in range(1_000_000):
        assert np.array_equal(client.encode(texts), expected)
        print(number, flush=True)
"""


class Clock:
    """The wall clock of some processes; their monotonic one is the machine's.

    Attributes:
        environment: what a process needs that is to go by it.

    """

    def __init__(self, library: Path, file: Path) -> None:
        self._file = file
        self.environment = {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_NO_CACHE": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }
        self.set(0)

    def set(self, offset_s: int) -> None:
        """Have the clock be wrong by so many seconds from now on."""
        written = self._file.with_suffix(".new")
        written.write_text(f"{offset_s:+d}\n")
        written.replace(self._file)


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    spec = util.find_spec("libfaketime")
    assert spec is not None
    assert spec.origin is not None
    library = Path(spec.origin).parent / "vendor" / "libfaketime" / "src" / "libfaketime.so.1"
    if not library.exists():
        pytest.skip("libfaketime was not built for this system")
    return Clock(library, tmp_path / "clock")


@pytest.fixture
def server(start_server: Starter, clock: Clock) -> ServerProcess:
    options = ("-model_dir", "fake:384?row_us=200", "-num_worker", "2")
    return start_server(*options, environment=clock.environment)


@pytest.fixture
def caller(
    server: ServerProcess, clock: Clock, tmp_path: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """A process with the same clock whose calls may take ten seconds each."""
    command = [sys.executable, "-c", CALLS, str(server.port), str(int(10_000 * SECOND))]
    environment = {"PATH": "/usr/bin:/bin", **clock.environment}
    with (tmp_path / "calls").open("wb") as calls, (tmp_path / "errors").open("wb") as errors:
        process = subprocess.Popen(command, env=environment, stdout=calls, stderr=errors)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_calls_and_processes_do_not_mind(
    server: ServerProcess, clock: Clock, caller: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    before = set(server.processes())

    def num_calls() -> int:
        assert caller.poll() is None, (tmp_path / "errors").read_text()
        return (tmp_path / "calls").read_bytes().count(b"\n")

    days = set()
    for offset_s in JUMPS:
        done = num_calls()
        eventually(lambda least=done + 20: num_calls() >= least)
        clock.set(offset_s)
        days.add(server.status()["server_current_time"][:10])
        done = num_calls()
        eventually(lambda least=done + 20: num_calls() >= least)
    assert len(days) == len(JUMPS)
    assert set(server.processes()) == before
    assert "another in" not in server.log
    with server.client() as client:
        assert client.server_status["statistic"]["num_failed"] == {}
