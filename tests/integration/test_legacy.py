"""The real client of bert-as-service 1.10 against the legacy gateway: all that it can do."""

from __future__ import annotations

import json
import os
import signal
import socket as sockets
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zmq
from embedded_reference import assert_equal, expected, hidden_states
from legacy_client import legacy_ports, old_python, old_wire, run_old_client
from server_process import SECOND, ServerProcess, Starter, eventually, memory_kib

from bert_serving.server import exit_codes
from bert_serving.server.model.fake import fake_embedding

DIM = 384
QUOTED = "TypeError: data type 'bert-servin"
"""How NumPy begins when it refuses an answer's data type; one or two quotation marks."""

GATEWAY = "gateway.legacy"
LEGACY = ("-legacy_port", "0")
EMBEDDED = (*LEGACY, "-cpu", "-dtype", "float32", "-max_batch_tokens", "512")

TEXTS = [
    "First do it, then do it right, then do it better.",
    "Grüße aus Zürich",
    "你好，世界",  # noqa: RUF001  # a comma of its own
    "  🤗 blanks around it\t",
    "two\nlines ||| are no pair",
]
PAIR_TEXTS = ["How old are you? ||| I am 6 years old.", "a ||| b ||| c"]
PAIRS = [("How old are you?", "I am 6 years old."), ("a ||| b", "c")]
TOKENS = [["first", "do", "it"], ["a", "|||", "b", "|||", "c"], ["zürich", "hello"]]


@pytest.fixture(scope="module", autouse=True)
def the_old_client() -> Path:
    """It is there before the first test counts its time."""
    return old_python()


@pytest.fixture(scope="module")
def embedded(module_server: Starter) -> ServerProcess:
    """A server of the embedded model, for old clients too."""
    return module_server(*EMBEDDED, "-show_tokens_to_client", embedded=True)


@pytest.fixture(scope="module")
def token_level(module_server: Starter) -> ServerProcess:
    """One that serves token vectors of 25 tokens, bert-as-service's default."""
    options = ("-pooling_strategy", "NONE", "-max_seq_len", "25")
    return module_server(*EMBEDDED, *options, embedded=True)


@pytest.fixture(scope="module")
def fake(module_server: Starter) -> ServerProcess:
    """A server of made-up vectors, to be ill-treated."""
    return module_server(*LEGACY)


def fakes(rows: Any) -> npt.NDArray[np.float32]:
    return np.stack([fake_embedding(row, DIM) for row in rows])


def free_ports() -> tuple[int, int]:
    """Return two ports that nobody listens on."""
    with sockets.create_server(("127.0.0.1", 0)) as one, sockets.create_server(("", 0)) as two:
        return one.getsockname()[1], two.getsockname()[1]


def array(frames: list[bytes]) -> npt.NDArray[Any]:
    """Return the array in an answer, as an old client reads it."""
    header = json.loads(frames[1])
    return np.frombuffer(frames[2], header["dtype"]).reshape(header["shape"])


def still_serves(server: ServerProcess) -> bool:
    """Whether a new client of the old protocol gets its answer."""
    with old_wire(legacy_ports(server)) as wire:
        wire.subscribe(b"still-there")
        wire.send(b"still-there", b'["a text"]', b"1", b"1")
        frames = wire.receive()
        assert frames[0] == b"still-there" and frames[3] == b"1"
        return np.array_equal(array(frames), fakes(["a text"]))


# encoding, against transformers


def test_texts_are_encoded_as_the_reference_has_them(
    embedded: ServerProcess, tmp_path: Path
) -> None:
    script = "with connect() as client: give(texts=client.encode(json.loads(sys.argv[5])))"
    given = run_old_client(embedded, tmp_path, script, json.dumps(TEXTS))
    assert given["texts"].dtype == np.float32
    assert_equal(given["texts"], expected(TEXTS))


def test_pairs_are_encoded_as_pairs_in_texts_and_in_tokens(
    embedded: ServerProcess, tmp_path: Path
) -> None:
    script = """
with connect() as client:
    texts, tokens = json.loads(sys.argv[5])
    give(texts=client.encode(texts), tokens=client.encode(tokens, is_tokenized=True))
"""
    given = run_old_client(embedded, tmp_path, script, json.dumps([PAIR_TEXTS, TOKENS]))
    assert_equal(given["texts"], expected(PAIRS))
    with embedded.client() as native:
        rows = [["first", "do", "it"], (["a"], ["b", "|||", "c"]), ["zürich", "hello"]]
        assert_equal(given["tokens"], native.encode(rows, is_tokenized=True))
    assert_equal(given["tokens"][:1], expected(["first do it"]))


def test_tokens_are_shown_when_the_server_allows_it(
    embedded: ServerProcess, token_level: ServerProcess, tmp_path: Path
) -> None:
    script = """
with connect() as client, warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    answer = client.encode(["hello world", "a ||| b"], show_tokens=True)
    give(is_pair=isinstance(answer, tuple), warnings=[str(w.message) for w in caught])
    if isinstance(answer, tuple):
        give(vectors=answer[0], tokens=answer[1])
"""
    given = run_old_client(embedded, tmp_path, script)
    assert given["is_pair"]
    assert given["tokens"] == [
        ["[CLS]", "hello", "world", "[SEP]"],
        ["[CLS]", "a", "[SEP]", "b", "[SEP]"],
    ]
    assert_equal(given["vectors"], expected(["hello world", ("a", "b")]))
    given = run_old_client(token_level, tmp_path, script)
    assert not given["is_pair"]
    assert any("does not support showing tokenization" in text for text in given["warnings"])


def test_token_vectors_are_padded_to_the_length_that_the_server_was_given(
    token_level: ServerProcess, tmp_path: Path
) -> None:
    rows = [*TEXTS, "word " * 40]
    script = """
with connect() as client, warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    give(vectors=client.encode(json.loads(sys.argv[5])), limit=client.server_config["max_seq_len"])
    give(warnings=[str(w.message) for w in caught])
"""
    given = run_old_client(token_level, tmp_path, script, json.dumps(rows))
    assert given["limit"] == 25
    assert any('more tokens than "max_seq_len=25"' in text for text in given["warnings"])
    vectors = given["vectors"]
    assert vectors.shape == (len(rows), 25, DIM)
    for row, text in zip(vectors, rows, strict=True):
        states = hidden_states(text, 25)[-2]
        assert_equal(row[: len(states)], states)
        assert not row[len(states) :].any()
    assert len(hidden_states(rows[-1], 25)[0]) == 25


# what else the old client can do


def test_answers_can_be_fetched_later_one_by_one_or_all_together(
    embedded: ServerProcess, tmp_path: Path
) -> None:
    script = """
texts = json.loads(sys.argv[5])
with connect() as client:
    for text in texts:
        give(returned=client.encode([text], blocking=False))
    fetched = {response.id: response.embedding for response in client.fetch()}
    give(fetched=np.concatenate([fetched[number] for number in sorted(fetched)]))
    for text in texts:
        client.encode([text, text], blocking=False)
    give(together=client.fetch_all(sort=True, concat=True))
    for text in texts:
        client.encode([text], blocking=False)
    give(parts=len(client.fetch_all(sort=True, concat=False)), nothing=client.fetch_all())
    give(pending=client.status["num_pending_request"])
"""
    given = run_old_client(embedded, tmp_path, script, json.dumps(TEXTS))
    assert given["returned"] is None
    assert_equal(given["fetched"], expected(TEXTS))
    assert_equal(given["together"], np.repeat(expected(TEXTS), 2, axis=0))
    assert (given["parts"], given["nothing"], given["pending"]) == (len(TEXTS), None, 0)


def test_batches_of_a_generator_are_encoded_in_the_background(
    embedded: ServerProcess, tmp_path: Path
) -> None:
    script = """
texts = json.loads(sys.argv[5])
def endless():
    while True:
        yield texts
with connect() as client:
    got = list(client.encode_async(endless(), max_num_batch=10))
    give(vectors=np.stack([response.embedding for response in got]))
    give(ids=[response.id for response in got])
"""
    given = run_old_client(embedded, tmp_path, script, json.dumps(TEXTS))
    assert sorted(given["ids"]) == list(range(2, 12))  # 1 was the client's first question
    assert_equal(given["vectors"], np.stack([expected(TEXTS)] * 10))


def test_vectors_can_be_lists(embedded: ServerProcess, tmp_path: Path) -> None:
    script = """
with connect(output_fmt="list") as client:
    give(vectors=client.encode(["a text", "another"]))
    client.encode(["a text"], blocking=False)
    client.encode(["another"], blocking=False)
    give(fetched=client.fetch_all(concat=True))
"""
    given = run_old_client(embedded, tmp_path, script)
    assert isinstance(given["vectors"][0][0], float)
    assert_equal(np.array(given["vectors"]), expected(["a text", "another"]))
    assert_equal(np.array(given["fetched"]), expected(["a text", "another"]))


def test_a_concurrent_client_serves_threads(embedded: ServerProcess, tmp_path: Path) -> None:
    script = """
from concurrent.futures import ThreadPoolExecutor
texts = json.loads(sys.argv[5])
client = connect(ConcurrentBertClient, max_concurrency=5)
with ThreadPoolExecutor(5) as pool:
    vectors = list(pool.map(lambda text: client.encode(texts=[text])[0], texts * 10))
give(vectors=np.stack(vectors), version=client.server_config["server_version"])
give(status=client.server_status["status"], own=client.status["num_request"] > 0)
client.close()
"""
    given = run_old_client(embedded, tmp_path, script, json.dumps(TEXTS))
    assert_equal(given["vectors"], np.tile(expected(TEXTS), (10, 1)))
    assert (given["version"], given["status"], given["own"]) == ("1.10.0", 200, True)


def test_configuration_and_status_have_the_names_that_users_print(
    embedded: ServerProcess, tmp_path: Path
) -> None:
    script = """
with connect(show_server_config=True, identity=b"somebody") as client:
    client.encode(["a text", "another"])
    give(config=client.server_config, status=client.server_status)
"""
    given = run_old_client(embedded, tmp_path, script)
    config, status = given["config"], given["status"]
    port, port_out = legacy_ports(embedded)
    wanted = {
        "client": "somebody",
        "port": port,
        "port_out": port_out,
        "native_port": embedded.port,
        "server_version": "1.10.0",
        "pooling_strategy": 2,
        "pooling_layer": [-2],
        "max_seq_len": None,
        "show_tokens_to_client": True,
        "num_worker": 1,
        "priority_batch_size": 16,
        "mask_cls_sep": False,
        "fp16": False,
        "cpu": True,
    }
    assert {name: config[name] for name in wanted} == wanted
    assert {name: status[name] for name in wanted} == wanted
    for name in ("python_version", "pyzmq_version", "zmq_version", "server_start_time"):
        assert config[name]
    assert "statistic" not in config
    statistic = status["statistic"]
    assert statistic["num_total_seq"] >= 2
    assert statistic["num_total_request"] >= statistic["num_data_request"] + 3
    assert statistic["num_active_client"] >= 1
    assert statistic["max_size_per_request"] >= 2


def test_several_clients_with_one_identity_all_get_the_answers(
    fake: ServerProcess, tmp_path: Path
) -> None:
    script = """
one, other = (connect(identity=b"shared", ignore_all_checks=True) for _ in range(2))
other.encode(["and so its subscription is there"])
one.request_id = 100  # the two must not count alike
give(asked=one.encode(["a question"]))
other.pending_request.add(101)
give(heard=other._recv_ndarray(101).embedding)
"""
    given = run_old_client(fake, tmp_path, script)
    assert np.array_equal(given["asked"], fakes(["a question"]))
    assert np.array_equal(given["heard"], fakes(["a question"]))


@pytest.mark.parametrize("options", [(), ("-fixed_embed_length",)], ids=["longest", "fixed"])
def test_without_a_length_token_vectors_are_padded_to_the_longest_or_the_models_limit(
    start_server: Starter, tmp_path: Path, options: tuple[str, ...]
) -> None:
    server = start_server(*LEGACY, "-pooling_strategy", "NONE", *options)
    rows = [" ".join("word" for _ in range(1 + number % 40)) for number in range(400)]
    script = """
with connect() as client:
    give(vectors=client.encode(json.loads(sys.argv[5])))
"""
    vectors = run_old_client(server, tmp_path, script, json.dumps(rows))["vectors"]
    assert vectors.shape == (400, 512 if options else 42, DIM)
    with server.client() as native:
        for row, wanted in zip(vectors, native.encode(rows), strict=True):
            assert np.array_equal(row[: len(wanted)], wanted)
            assert not row[len(wanted) :].any()


def test_a_request_of_many_rows_is_answered_in_their_order(
    fake: ServerProcess, tmp_path: Path
) -> None:
    script = """
with connect() as client:
    give(vectors=client.encode([f"text number {number}" for number in range(20_000)]))
"""
    given = run_old_client(fake, tmp_path, script)
    assert np.array_equal(given["vectors"], fakes(f"text number {n}" for n in range(20_000)))


def test_a_client_that_comes_before_the_model_is_loaded_waits_for_it(
    start_server: Starter,
) -> None:
    port, port_out = free_ports()
    options = ("-legacy_port", str(port), "-legacy_port_out", str(port_out))
    server = start_server("-model_dir", "fake:384?boot_s=3", *options, wait=False)
    with old_wire((port, port_out)) as wire:
        wire.subscribe(b"early")
        wire.send(b"early", b'["a text"]', b"1", b"1")
        eventually(lambda: {port, port_out} <= set(server._listening_ports()))
        assert not server.ready_file.exists()
        assert np.array_equal(array(wire.receive(20 * SECOND)), fakes(["a text"]))


# where bert-as-service would hang


def test_what_cannot_be_encoded_raises_in_the_client_with_the_reason(
    fake: ServerProcess, tmp_path: Path
) -> None:
    bodies = {
        "{": "this is no JSON",
        "\x00": "this is no JSON",
        "[" * 100_000: "this is no JSON",
        "[]": "got an empty list",
        '"text"': "got JSON of type str",
        '{"a": 1}': "got a JSON object",
        "null": "got JSON of type NoneType",
        "[1]": "row 0 is of type int",
        '["a", ["b"]]': "row 1 is of type list: expected a text; like row 0",
        '[["a"], "b"]': "row 1 is of type str: expected a list of tokens; like row 0",
        '[["a", 7]]': "row 0 is not only strings",
        '["\\ud800"]': "no valid Unicode text",
        '["fake:raise"]': "the model failed on this request: RuntimeError: fake:raise",
    }
    script = """
with connect() as client, open(folder + "/bodies.json") as file:
    errors = []
    for body in json.load(file):
        number = client._send(body.encode(), 1)
        errors.append(raised(client._recv_ndarray, number))
    give(errors=errors, after=client.encode(["a text"]))
"""
    (tmp_path / "bodies.json").write_text(json.dumps(list(bodies)))
    given = run_old_client(fake, tmp_path, script)
    for error, wanted in zip(given["errors"], bodies.values(), strict=True):
        assert error is not None and error[:33].replace('"', "'") == QUOTED
        assert wanted in error
        said = wanted.replace(";", ",") if "fake:" not in wanted else "worker_failed"
        assert said in fake.log  # of what the server says only the code: it may quote a text
    assert np.array_equal(given["after"], fakes(["a text"]))


@pytest.mark.parametrize(
    ("frames", "why"),
    [
        ([b"somebody", b'["a"]', b"1"], "3 frames, expected 4"),
        ([b"somebody", b'["a"]', b"1", b"1", b"1"], "5 frames, expected 4"),
        ([b""], "1 frames, expected 4"),
        ([b"", b'["a"]', b"1", b"1"], "an identity of 0 bytes"),
        ([b"i" * 300, b'["a"]', b"1", b"1"], "an identity of 300 bytes"),
        ([b"somebody", b'["a"]', b"one", b"1"], "a request id of 3 bytes"),
        ([b"somebody", b'["a"]', b"1" * 5000, b"1"], "expected 1 to 20 digits"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_nobody_could_take_an_answer_to_is_logged(
    fake: ServerProcess, frames: list[bytes], why: str
) -> None:
    with old_wire(legacy_ports(fake)) as wire:
        wire.send(*frames)
        eventually(lambda: why in fake.log)
    assert still_serves(fake)


def test_nobody_can_stop_the_server_through_the_wire(fake: ServerProcess) -> None:
    processes = set(fake.processes())
    with old_wire(legacy_ports(fake)) as wire:
        wire.send(b"0", b"TERMINATION", b"0", b"0")
        eventually(lambda: "'0' has sent TERMINATION, which is refused" in fake.log)
    assert "bert-serving-terminate" in fake.log
    assert still_serves(fake)
    assert set(fake.processes()) == processes


def test_a_request_that_is_too_large_is_refused_and_a_larger_one_is_not_taken_in(
    fake: ServerProcess,
) -> None:
    (gateway,) = fake.processes(GATEWAY)
    with old_wire(legacy_ports(fake)) as wire:
        wire.subscribe(b"large")
        wire.send(b"large", b'["' + b"a" * (65 << 20) + b'"]', b"1", b"1")
        assert "at most 67108864 are taken" in json.loads(wire.receive()[1])["dtype"]
        wire.send(b"large", b'["' + b"a" * (20 << 20) + b'"]', b"2", b"1")
        assert "-max_request_bytes" in json.loads(wire.receive()[1])["dtype"]
        many = b'["' + b'","'.join([b"a"] * 1_500_000) + b'"]'
        wire.send(b"large", many, b"3", b"1500000")
        assert "rows like these at a time" in json.loads(wire.receive()[1])["dtype"]
        wire.send(b"large", bytes(130 << 20), b"4", b"1")
        assert still_serves(fake)
    assert fake.processes(GATEWAY) == [gateway]
    eventually(lambda: memory_kib(gateway) < 400 << 10)


def test_peers_that_speak_nonsense_are_turned_away(fake: ServerProcess) -> None:
    (gateway,) = fake.processes(GATEWAY)
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x01NULL" + bytes(48)
    for port in legacy_ports(fake):
        for garbage in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(50_000), greeting, greeting * 9):
            with sockets.create_connection(("127.0.0.1", port), 5) as peer:
                peer.sendall(garbage)
    with zmq.Context() as context, context.socket(zmq.XSUB) as peer:
        peer.linger = 0
        peer.connect(f"tcp://127.0.0.1:{legacy_ports(fake)[1]}")
        for message in (b"", b"\x07", b"\x00never-subscribed", b"\x01" + b"t" * 200, b"hello"):
            peer.send(message)
        assert still_serves(fake)
    assert fake.processes(GATEWAY) == [gateway]


# answers and those who should get them


def test_an_answer_waits_for_a_client_whose_subscription_comes_late(fake: ServerProcess) -> None:
    with old_wire(legacy_ports(fake)) as wire:
        for number in range(3):
            wire.send(b"late", b'["text %d"]' % number, b"%d" % number, b"1")
        sent = time.monotonic()
        eventually(lambda: time.monotonic() > sent + 1)  # longer than any connection takes
        wire.subscribe(b"late")
        answers = [wire.receive() for _ in range(3)]
        assert sorted(frames[3] for frames in answers) == [b"0", b"1", b"2"]
        for frames in answers:
            assert np.array_equal(array(frames), fakes([f"text {int(frames[3])}"]))


def test_memory_is_bounded_for_answers_that_nobody_has_subscribed_to(
    start_server: Starter,
) -> None:
    server = start_server("-model_dir", "fake:8192", *LEGACY)
    (gateway,) = server.processes(GATEWAY)
    most = 0
    with old_wire(legacy_ports(server)) as wire:
        body = json.dumps([f"text {number}" for number in range(64)]).encode()
        for number in range(600):  # 2 MB an answer
            wire.send(b"nobody-%d" % number, body, b"1", b"64")
            most = max(most, memory_kib(gateway))
        eventually(lambda: "nobody has subscribed to 'nobody-5" in server.log, 30 * SECOND)
        with old_wire(legacy_ports(server)) as other:
            other.subscribe(b"somebody")
            other.send(b"somebody", b'["a text"]', b"1", b"1")
            assert np.array_equal(array(other.receive())[0], fake_embedding("a text", 8192))
    assert most < 700 << 10
    assert server.processes(GATEWAY) == [gateway]


def test_a_client_that_is_slow_to_read_loses_nothing_and_holds_up_nobody(
    fake: ServerProcess,
) -> None:
    with old_wire(legacy_ports(fake)) as wire, ThreadPoolExecutor(1) as pool:
        wire.subscriber.rcvhwm = 1
        wire.subscriber.rcvbuf = 4096
        wire.subscribe(b"slow")
        body = json.dumps([f"text {number}" for number in range(200)]).encode()

        def send_all() -> None:
            for number in range(300):
                wire.send(b"slow", body, b"%d" % number, b"200")

        sending = pool.submit(send_all)
        sending.result()
        assert still_serves(fake)
        numbers = {int(wire.receive()[3]) for _ in range(300)}
        assert numbers == set(range(300))


def test_a_client_that_does_not_read_costs_others_of_its_identity_nothing(
    fake: ServerProcess,
) -> None:
    ports = legacy_ports(fake)
    with old_wire(ports) as idle, old_wire(ports) as reader, ThreadPoolExecutor(1) as pool:
        idle.subscriber.rcvhwm = 1
        idle.subscriber.rcvbuf = 4096
        for wire, name in ((idle, b"its-own-1"), (reader, b"its-own-2")):
            wire.subscriber.subscribe(b"clones")
            wire.subscribe(name)
            wire.send(name, b'["and so its subscriptions are there"]', b"0", b"1")
            wire.receive()
        body = json.dumps([f"text {number}" for number in range(200)]).encode()

        def send_all() -> None:
            for number in range(300):
                reader.send(b"clones", body, b"%d" % number, b"200")

        sending = pool.submit(send_all)
        started = time.monotonic()
        numbers = {int(reader.receive()[3]) for _ in range(300)}
        assert time.monotonic() - started < 20 * SECOND
        sending.result()
        assert numbers == set(range(300))
    assert "'clones' does not read its answers" in fake.log


def test_native_clients_are_served_beside_old_ones(fake: ServerProcess) -> None:
    with old_wire(legacy_ports(fake)) as wire, fake.client() as native:
        wire.subscribe(b"busy")
        body = json.dumps([f"text {number}" for number in range(500)]).encode()
        for number in range(50):
            wire.send(b"busy", body, b"%d" % number, b"500")
            assert np.array_equal(native.encode("a text"), fake_embedding("a text", DIM))
        for _ in range(50):
            assert len(array(wire.receive())) == 500


# processes that die


def test_a_gateway_that_is_killed_comes_back_where_it_was(
    start_server: Starter, tmp_path: Path
) -> None:
    server = start_server(*LEGACY)
    (gateway,) = server.processes(GATEWAY)
    script = """
with connect(timeout=1000) as client:
    give(before=client.encode(["a text"]))
    os.kill(int(sys.argv[5]), signal.SIGKILL)
    deadline = time.monotonic() + 20
    while raised(client.encode, ["a text"]) and time.monotonic() < deadline:
        pass
    give(after=client.encode(["another"]))
"""
    given = run_old_client(server, tmp_path, script, str(gateway))
    assert np.array_equal(given["before"], fakes(["a text"]))
    assert np.array_equal(given["after"], fakes(["another"]))
    assert "the legacy gateway was ended by SIGKILL" in server.log
    assert server.processes(GATEWAY) != [gateway]
    with server.client() as native:
        assert np.array_equal(native.encode("a text"), fake_embedding("a text", DIM))


def test_a_worker_killed_in_the_middle_of_a_request_costs_nothing(start_server: Starter) -> None:
    server = start_server("-model_dir", "fake:384?row_us=100", *LEGACY)
    rows = [f"text number {number}" for number in range(10_000)]
    with old_wire(legacy_ports(server)) as wire:
        wire.subscribe(b"patient")
        wire.send(b"patient", json.dumps(rows).encode(), b"1", b"10000")
        (worker,) = server.worker_pids().values()
        eventually(lambda: server.status()["statistic"]["num_delivered"] > 5)
        assert not wire.subscriber.poll(0)
        os.kill(worker, signal.SIGKILL)
        assert np.array_equal(array(wire.receive(20 * SECOND)), fakes(rows))
    assert "worker 0 was ended by SIGKILL" in server.log


# starting and ending


def test_the_ready_line_and_file_name_both_ports(fake: ServerProcess) -> None:
    addresses = json.loads(fake.ready_file.read_text())
    port, port_out = legacy_ports(fake)
    legacy = [f"tcp://127.0.0.1:{port}", f"tcp://127.0.0.1:{port_out}"]
    assert addresses["legacy"] == legacy
    assert f"ready native={addresses['native']} legacy={','.join(legacy)} pid=" in fake.log


def test_the_port_for_results_is_the_next_one_unless_given(start_server: Starter) -> None:
    free = free_ports()
    server = start_server("-legacy_port", str(free[0]), "-legacy_port_out", str(free[1]))
    assert legacy_ports(server) == free
    server.stop()
    server = start_server("-legacy_port", str(free[0]))
    assert legacy_ports(server) == (free[0], free[0] + 1)


@pytest.mark.parametrize("option", ["-legacy_port", "-legacy_port_out"])
def test_a_port_that_is_taken_ends_the_start_with_a_message(
    start_server: Starter, option: str
) -> None:
    with sockets.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ports = {"-legacy_port": "0", option: str(port)}
        server = start_server(*(word for pair in ports.items() for word in pair), wait=False)
        assert server.wait(30 * SECOND) == exit_codes.BOOT_FAILED
        assert f"cannot listen on 127.0.0.1, {option} {port}: Addr" in server.last_line
        assert "Traceback" not in server.log
        assert not server.processes()


def test_a_port_for_results_alone_is_refused(start_server: Starter) -> None:
    server = start_server("-legacy_port_out", "0", wait=False)
    assert server.wait(30 * SECOND) == exit_codes.BOOT_FAILED
    assert "give -legacy_port as well" in server.last_line


def test_a_stopping_server_works_off_what_its_old_clients_have_asked(
    start_server: Starter,
) -> None:
    server = start_server("-model_dir", "fake:384?row_us=100", *LEGACY)
    rows = [f"text number {number}" for number in range(10_000)]
    with old_wire(legacy_ports(server)) as wire:
        wire.subscribe(b"last")
        wire.send(b"last", json.dumps(rows).encode(), b"1", b"10000")
        eventually(lambda: server.status()["statistic"]["num_delivered"] > 5)
        server.terminate()
        eventually(lambda: "stopping: working off" in server.log)
        wire.send(b"last", b'["too late"]', b"2", b"1")
        answers = {frames[3]: frames for frames in (wire.receive(), wire.receive(20 * SECOND))}
        assert "the server is stopping" in json.loads(answers[b"2"][1])["dtype"]
        assert np.array_equal(array(answers[b"1"]), fakes(rows))
    assert server.wait() == exit_codes.OK


def test_what_cannot_be_worked_off_in_time_is_answered_with_an_error(
    start_server: Starter,
) -> None:
    server = start_server(*LEGACY, "-drain_timeout", "0.5")
    with old_wire(legacy_ports(server)) as wire:
        wire.subscribe(b"unlucky")
        wire.send(b"unlucky", b'["fake:sleep 100"]', b"1", b"1")
        eventually(lambda: server.status()["statistic"]["requests_in_hand"] == 1)
        server.terminate()
        assert "stop" in json.loads(wire.receive()[1])["dtype"]
    assert server.wait() == exit_codes.OK
