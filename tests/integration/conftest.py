"""Servers for the tests: started with what a test needs, ended and looked after when it is over."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from server_process import BOOT_S, SECOND, ServerProcess, Starter

from bert_serving.client import BertClient

FAKE = ("-model_dir", "fake:384")
EMBEDDED_BOOT_S = 120 * SECOND


@pytest.fixture(scope="session", autouse=True)
def run_folder() -> Iterator[Path]:
    """A folder for everything that servers write; short, as a socket's path may not be long."""
    folder = Path(tempfile.mkdtemp(prefix="bst-", dir="/tmp"))
    folder.chmod(0o700)
    kept = dict(os.environ)
    for name in [name for name in os.environ if name.startswith("BERT_SERVING_")]:
        del os.environ[name]
    os.environ.update(HF_HUB_OFFLINE="1", TMPDIR=str(folder), XDG_RUNTIME_DIR=str(folder))
    os.environ["BERT_SERVING_NUM_WORKER"] = "1"  # not measured, which takes seconds a model
    tempfile.tempdir = None  # so that TMPDIR is looked up again
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also if this runs under nohup
    yield folder
    os.environ.clear()
    os.environ.update(kept)
    tempfile.tempdir = None
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def control_folder(run_folder: Path) -> Path:
    """Where the servers of this run have their sockets."""
    return run_folder / f"bert-serving-{os.getuid()}"


def _starter(folder: Path, started: list[ServerProcess]) -> Starter:
    def start(
        *options: str, wait: bool = True, embedded: bool = False, **settings: Any
    ) -> ServerProcess:
        if "-model_dir" not in options and not embedded:
            options = (*FAKE, *options)
        server = ServerProcess(options, folder, **settings)
        started.append(server)
        if wait:
            server.wait_ready(EMBEDDED_BOOT_S if embedded else BOOT_S)
        return server

    return start


def _stop_all(started: list[ServerProcess]) -> None:
    errors = []
    for server in started:
        try:
            server.stop()
        except Exception as error:  # noqa: BLE001  # the others are to be stopped all the same
            errors.append(f"{error!r}\n{server.log}")
    assert not errors, "\n".join(errors)


@pytest.fixture
def start_server(run_folder: Path) -> Iterator[Starter]:
    """Start servers with the options of a test; they end with it, and nothing is left of them."""
    started: list[ServerProcess] = []
    yield _starter(run_folder, started)
    _stop_all(started)


@pytest.fixture(scope="module")
def module_server(run_folder: Path) -> Iterator[Starter]:
    """Start servers that the tests of a module share."""
    started: list[ServerProcess] = []
    yield _starter(run_folder, started)
    _stop_all(started)


@pytest.fixture(scope="session")
def fake_server(run_folder: Path) -> Iterator[ServerProcess]:
    """One server of the fake model, for tests that leave it as it is."""
    started: list[ServerProcess] = []
    yield _starter(run_folder, started)("-num_worker", "2")
    _stop_all(started)


@pytest.fixture
def client(fake_server: ServerProcess) -> Iterator[BertClient]:
    """A client of the shared server."""
    with fake_server.client() as client:
        yield client


@pytest.fixture(scope="session")
def embedded_server(run_folder: Path) -> Iterator[ServerProcess]:
    """One server of the embedded model, computing in float32."""
    started: list[ServerProcess] = []
    yield _starter(run_folder, started)("-cpu", "-dtype", "float32", embedded=True)
    _stop_all(started)
