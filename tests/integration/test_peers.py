"""Comparing with others on real processes: the whole command, and the programs of peers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from legacy_client import legacy_ports
from server_process import COMMANDS, MARK, SECOND, ServerProcess, Starter, marked_processes

from bert_serving.server import exit_codes
from bert_serving.server.benchmark.peers.catalogue import PeerChoice, parse_peer
from bert_serving.server.benchmark.peers.process import PeerFailed, PeerProcess
from bert_serving.server.benchmark.peers.programs.lines import Options
from bert_serving.server.model.fake import fake_embedding

ROOT = Path(__file__).resolve().parents[2]
DIM, LAYERS = 384, 6
TEXTS = [f"text number {number}" for number in range(300)]


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of three layers, made as those for benchmarks are."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    command = [sys.executable, ROOT / "scripts" / "random_model.py", "tiny", folder]
    subprocess.run(command, check=True, timeout=60 * SECOND)
    return folder


def test_the_whole_comparison_is_made_on_a_tiny_model(tiny_model: Path, tmp_path: Path) -> None:
    mark, output, document = uuid.uuid4().hex, tmp_path / "output", tmp_path / "document.md"
    document.write_text("# Figures\n\nWritten by hand.\n")
    run = subprocess.run(
        [
            *(COMMANDS / "bert-serving-benchmark", "-model_dir", tiny_model),
            *("-peer", "transformers", "openvino", "-compare", "bulk"),
            *("-compare_dtype", "float32", "-compare_rounds", "2", "-compare_seconds", "0.1"),
            *("-max_batch_tokens", "512", "-output", output, "-document", document),
        ],
        capture_output=True,
        text=True,
        timeout=60 * SECOND,
        env={**os.environ, MARK: mark},
    )
    assert run.returncode == exit_codes.OK, run.stdout + run.stderr
    assert not marked_processes(mark)

    (comparison,) = json.loads((output / "comparison.json").read_text())
    assert comparison["ended"] == "" and comparison["num_layers"] == 3
    (workload,) = comparison["workloads"]
    entries = {(entry["name"], entry["layers"]): entry for entry in workload["entries"]}
    assert set(entries) == {("bert-serving", 2), ("bert-serving", 3), ("transformers", 3)}
    for entry in entries.values():
        assert len(entry["seconds"]) == 2 and entry["rows_per_s"]["middle"] > 0
        assert entry["cosine"] > 0.99999 and entry["excluded"] == ""
        assert 0 < entry["share"] < 1
    fewer, equal = workload["ratios"]
    assert fewer["best float32 peer"]["over"] == "transformers, float32, 3 of 3 layers"
    assert fewer["best float32 peer, equal layers"] is None
    assert equal["best float32 peer, equal layers"]["middle"] > 0

    (missing,) = comparison["left_out"]
    assert missing in run.stdout and "pip install" in missing and "openvino=VENV" in missing
    report = (output / "comparison.md").read_text("utf-8")
    published = document.read_text("utf-8")
    assert "Written by hand." in published
    for text in (report, published):
        assert "transformers, float32, 3 of 3 layers" in text and missing in text
    (picture,) = (tmp_path / "document").iterdir()
    assert f"(document/{picture.name})" in published
    assert picture.read_bytes().startswith(b"\x89PNG")


# bert-as-service's peer, on our gateway


@pytest.fixture(scope="module")
def gateway(module_server: Starter) -> ServerProcess:
    """A server of made-up vectors that speaks the old protocol."""
    return module_server("-legacy_port", "0", "-max_seq_len", "25")


@pytest.fixture
def choice(gateway: ServerProcess) -> PeerChoice:
    """It, as it is typed."""
    port, port_out = legacy_ports(gateway)
    return parse_peer(f"bert-as-service=127.0.0.1:{port}:{port_out}")


@pytest.fixture
def peer(choice: PeerChoice, tmp_path: Path) -> Iterator[PeerProcess]:
    """Its program, not yet started."""
    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": LAYERS}))
    made = process(choice, tmp_path)
    yield made
    made.stop()


def process(choice: PeerChoice, folder: Path, **options: Any) -> PeerProcess:
    told = Options(str(folder), "float32", 1, choice.address, **options)
    return PeerProcess(choice, told, folder / "log", check=lambda: None)


def test_bert_as_service_is_asked_by_its_own_protocol(peer: PeerProcess) -> None:
    facts = peer.start()
    assert (facts.name, facts.version, facts.max_tokens) == ("bert-as-service", "1.10.0", 25)
    assert facts.layers == LAYERS - 1
    assert "requests of" in peer.tune(TEXTS, 0.1)
    assert peer.encode(TEXTS) > 0
    vectors = np.array(peer.vectors(TEXTS), np.float32)
    np.testing.assert_array_equal(vectors, [fake_embedding(text, DIM) for text in TEXTS])


def test_what_is_in_a_peers_way_is_said(choice: PeerChoice, tmp_path: Path) -> None:
    peer = process(choice, tmp_path)
    with pytest.raises(PeerFailed, match=r"FileNotFoundError.*config\.json"):
        peer.start()
    peer.stop()


def test_a_request_that_fails_is_answered_and_the_next_one_too(peer: PeerProcess) -> None:
    peer.start()
    with pytest.raises(PeerFailed, match="expected encode, vectors or tune"):
        peer._ask({"sing": []})
    assert peer.encode(TEXTS[:3]) > 0


def test_a_peer_that_is_killed_is_missed_at_once(peer: PeerProcess) -> None:
    peer.start()
    assert peer._process is not None
    peer._process.kill()
    with pytest.raises(PeerFailed, match="SIGKILL"):
        peer.encode(TEXTS)


def test_a_peer_ends_with_its_owner(peer: PeerProcess) -> None:
    peer.start()
    assert peer._process is not None and peer._process.stdin is not None
    peer._process.stdin.close()
    assert peer._process.wait(10 * SECOND) == 0
