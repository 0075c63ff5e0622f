"""A machine, or a process, that was asleep: time has passed, and nothing is lost."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from server_process import SECOND, ServerProcess, Starter, eventually

from bert_serving.server.model.fake import fake_embedding

ROWS = [f"text number {number}" for number in range(5_000)]
ASLEEP_S = 3.0
WHO = {
    "supervisor": ("bert-serving-start",),
    "broker": ("server.broker",),
    "supervisor and broker": ("bert-serving-start", "server.broker"),
    "all": ("bert",),
}


def processes(server: ServerProcess, roles: tuple[str, ...]) -> list[int]:
    return [pid for role in roles for pid in server.processes(role)]


@pytest.mark.parametrize("who", WHO)
def test_a_process_that_sleeps_for_seconds_loses_nothing(start_server: Starter, who: str) -> None:
    server = start_server("-model_dir", "fake:384?row_us=100", "-num_worker", "2")
    before = set(server.processes())
    expected = np.stack([fake_embedding(row, 384) for row in ROWS])
    with server.client() as client, ThreadPoolExecutor(1) as pool:
        call = pool.submit(client.encode, ROWS)
        eventually(lambda: server.status()["statistic"]["num_delivered"] > 0)
        asleep = processes(server, WHO[who])
        assert asleep
        for pid in asleep:
            os.kill(pid, signal.SIGSTOP)
        threading.Event().wait(ASLEEP_S * SECOND)
        for pid in asleep:
            os.kill(pid, signal.SIGCONT)
        assert np.array_equal(call.result(), expected)
    assert set(server.processes()) == before  # nobody was taken for hanging
    with server.client() as client:
        assert np.array_equal(client.encode(ROWS[:9]), expected[:9])
