"""The doors, seen from another machine: a network namespace with a cable to this one."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from key_files import KeyFiles, new_keys
from namespaces import Neighbour, neighbour
from server_process import SECOND, ServerProcess, Starter

SENTENCE = "the treasure is buried beneath the old lighthouse"

CLIENT = """
import json, sys
from bert_serving.client import BertClient
told = json.loads(sys.argv[1])
try:
    with BertClient(connect_timeout=3000, timeout=10000, **told) as client:
        print(json.dumps({"vector": client.encode(sys.argv[2]).tolist()}))
except Exception as error:
    print(json.dumps({"error": type(error).__name__, "message": str(error)}))
"""


@pytest.fixture(scope="module")
def other() -> Iterator[Neighbour]:
    with neighbour() as other:
        yield other


@pytest.fixture
def keys(tmp_path: Path) -> KeyFiles:
    return new_keys(tmp_path)


def encode(other: Neighbour, server: ServerProcess, **told: Any) -> dict[str, Any]:
    """Encode the sentence on the other machine; returns its vector, or the error."""
    where = {"ip": other.here, "port": server.port, **told}
    process = other.start(sys.executable, "-c", CLIENT, json.dumps(where), SENTENCE)
    said, _ = process.communicate(timeout=30 * SECOND)
    answer: dict[str, Any] = json.loads(said.splitlines()[-1])
    return answer


def bytes_of(answer: dict[str, Any]) -> bytes:
    """Return the first part of a vector as it is on the wire."""
    vector: bytes = np.array(answer["vector"], "<f4").tobytes()
    return vector[:64]


def test_with_a_key_nothing_of_a_sentence_or_a_vector_can_be_overheard(
    other: Neighbour, start_server: Starter, keys: KeyFiles
) -> None:
    alice = keys.add("alice")
    server = start_server("-host", other.here, *keys.options)
    with other.sniffed() as heard:
        answer = encode(other, server, **alice)
    assert len(answer["vector"]) == 384
    assert b"CURVE" in heard, "the connection itself was not overheard"
    assert len(heard) > 384 * 4
    assert SENTENCE.encode() not in heard
    assert bytes_of(answer) not in heard
    assert not any(secret.encode() in heard for secret in keys.secrets())


def test_without_keys_everything_can_be_overheard_and_the_log_says_so(
    other: Neighbour, start_server: Starter
) -> None:
    server = start_server("-host", "0.0.0.0", "-allow_insecure")
    with other.sniffed() as heard:
        answer = encode(other, server)
    assert SENTENCE.encode() in heard
    assert bytes_of(answer) in heard
    assert "INSECURE: the native port on 0.0.0.0 is open to everybody" in server.log


def test_strangers_are_refused_with_their_address_in_the_log(
    other: Neighbour, start_server: Starter, keys: KeyFiles
) -> None:
    alice = keys.add("alice")
    mallory = keys.add("mallory", is_allowed=False)
    server = start_server("-host", "0.0.0.0", *keys.options)
    refusals = [
        (encode(other, server), "give server_key="),
        (encode(other, server, **mallory), "refuses this client's key"),
        (encode(other, server, **{**alice, "server_key": "x" * 40}), "server_key is not the key"),
    ]
    for answer, words in refusals:
        assert answer["error"] == "ServerUnreachable"
        assert words in answer["message"]
    assert f"refused {other.address}: its key" in server.log
    assert len(encode(other, server, **alice)["vector"]) == 384


def test_by_default_another_machine_cannot_even_connect(
    other: Neighbour, start_server: Starter
) -> None:
    server = start_server()
    answer = encode(other, server)
    assert answer["error"] == "ServerUnreachable"
    assert "nothing listens there" in answer["message"]
    assert server.status()["state"] == "ready"
