"""What bert-as-service 1.10's clients could do, with the same calls and the same results."""

from __future__ import annotations

import gc
import inspect
import itertools
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt
import pytest
import zmq
from server_process import SECOND, ServerProcess, Starter, eventually

from bert_serving.client import AsyncBertClient, BertClient, ConcurrentBertClient, Response
from bert_serving.client.errors import (
    InvalidRequest,
    MalformedMessage,
    RequestTimeout,
    ServerUnreachable,
)
from bert_serving.client.messages import Limits, Welcome
from bert_serving.client.pending import MAX_ROWS_AHEAD
from bert_serving.client.view import DEFAULT_VIEW
from bert_serving.server.model.fake import fake_embedding, fake_tokens

DIM = 384
TEXTS = ["First do it", "then do it right", "then do it better"]
CONSTRUCTOR = (
    "self ip port port_out output_fmt show_server_config identity check_version "
    "check_length check_token_info ignore_all_checks timeout"
)
TOKENS = [["first", "do", "it"], ["then"]]


def expected(rows: Any) -> npt.NDArray[np.float32]:
    return np.stack([fake_embedding(row, DIM) for row in rows])


def still_answers(client: BertClient) -> bool:
    return np.array_equal(client.encode(TEXTS), expected(TEXTS))


def batch(number: int, rows: int = 3) -> list[str]:
    return [f"batch {number}, row {row}" for row in range(rows)]


def batches(count: int) -> Iterator[list[str]]:
    return (batch(number) for number in range(count))


def in_order(responses: Any) -> list[Response]:
    return sorted(responses, key=lambda response: response.id)


@pytest.fixture(scope="module")
def slow_server(module_server: Starter) -> ServerProcess:
    """A server that needs a second for 10,000 rows."""
    return module_server("-model_dir", "fake:384?row_us=100")


# its signatures


@pytest.mark.parametrize(
    ("function", "old"),
    [
        (
            BertClient.__init__,
            CONSTRUCTOR,
        ),
        (BertClient.encode, "self texts blocking is_tokenized show_tokens"),
        (BertClient.fetch, "self delay"),
        (BertClient.fetch_all, "self sort concat"),
        (BertClient.encode_async, "self batch_generator max_num_batch delay"),
        (ConcurrentBertClient.__init__, "self max_concurrency"),
    ],
)
def test_parameters_can_be_given_by_place_as_before(function: Any, old: str) -> None:
    parameters = inspect.signature(function).parameters.values()
    by_place = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert by_place == old.split()


@pytest.mark.parametrize("kind", [BertClient, ConcurrentBertClient])
def test_a_client_says_what_it_is_and_what_it_waits_for(
    fake_server: ServerProcess, kind: type[BertClient]
) -> None:
    with kind(port=fake_server.port, identity="me", timeout=20_000) as client:
        client.encode(TEXTS)
        client.encode(TEXTS, blocking=False)
        assert client.status == {
            "identity": "me",
            "num_request": 2,
            "num_pending_request": 1,
            "pending_request": {2},
            "output_fmt": "ndarray",
            "port": fake_server.port,
            "port_out": 5556,
            "server_ip": "localhost",
            "servers": [f"tcp://localhost:{fake_server.port}"],
            "client_version": client.status["client_version"],
            "timeout": 20_000,
        }
        client.fetch_all()
        assert client.status["num_pending_request"] == 0
        assert (client.ip, client.port, client.identity) == ("localhost", fake_server.port, "me")
        assert (client.timeout, client.output_fmt, client.port_out) == (20_000, "ndarray", 5556)


def test_an_identity_can_be_another_clients(fake_server: ServerProcess) -> None:
    with fake_server.client() as one, fake_server.client(identity=one.identity) as two:
        assert one.identity == two.identity and len(one.identity) == 36
        assert still_answers(two)


def test_the_configuration_has_what_it_had_and_nothing_that_changes(client: BertClient) -> None:
    config = client.server_config
    assert config["num_worker"] == 2
    assert {"max_seq_len", "server_version", "pooling_strategy", "port"} <= set(config)
    assert not {"statistic", "workers"} & set(config)
    assert "statistic" in client.server_status


def test_the_configuration_is_printed_on_demand(
    fake_server: ServerProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_server.client(show_server_config=True).close()
    assert "num_worker = 2" in capsys.readouterr().out


def test_the_timeout_can_be_changed_between_calls(slow_server: ServerProcess) -> None:
    with slow_server.client() as client:
        client.timeout = 200
        with pytest.raises(TimeoutError):
            client.encode("fake:sleep 1")
        client.timeout = 20_000 * SECOND
        assert still_answers(client)


# pairs


def test_pairs_can_be_written_with_a_separator(fake_server: ServerProcess) -> None:
    with fake_server.client(pair_separator=" ||| ") as client:
        rows = ["a ||| b", "a", "a ||| b ||| c", ("x ||| y", "z")]
        pairs = [("a", "b"), "a", ("a ||| b", "c"), ("x ||| y", "z")]
        assert np.array_equal(client.encode(rows), expected(pairs))
        assert np.array_equal(client.encode(iter(rows)), expected(pairs))
        assert np.array_equal(client.encode("a ||| b"), fake_embedding(("a", "b"), DIM))
        tokens = [["a", "|||", "b", "|||"], ["a"]]
        answer = client.encode(tokens, is_tokenized=True)
        assert np.array_equal(answer, expected([(["a"], ["b", "|||"]), ["a"]]))
        assert client.tokenize("a ||| b").tokens == fake_tokens(("a", "b"))
        encoding = client.encode_detailed(["a => b"], pair_separator=" => ")
        assert encoding.tokens is None and encoding.n_tokens[0] == len(fake_tokens(("a", "b")))


def test_without_a_separator_bars_are_text(client: BertClient) -> None:
    assert np.array_equal(client.encode(["a ||| b"]), expected(["a ||| b"]))
    answer = client.encode(["a ||| b"], pair_separator=" ||| ")
    assert np.array_equal(answer, expected([("a", "b")]))
    with pytest.raises(ValueError, match="pair_separator='  '"):
        client.encode(["a"], pair_separator="  ")


# calls that are not waited for


def test_a_call_need_not_be_waited_for(client: BertClient) -> None:
    for number in range(10):
        assert client.encode(batch(number), blocking=False) is None
    responses = in_order(client.fetch())
    assert [response.id for response in responses] == list(range(1, 11))
    for number, response in enumerate(responses):
        assert np.array_equal(response.embedding, expected(batch(number)))
        assert not response.tokens
    assert list(client.fetch()) == []


def test_the_four_first_parameters_can_be_given_by_place(client: BertClient) -> None:
    vectors, tokens = client.encode(TOKENS, True, True, True)
    assert np.array_equal(vectors, expected(TOKENS))
    assert client.encode(TOKENS, False, True, True) is None
    (response,) = client.fetch(0.01)
    assert np.array_equal(response.embedding, vectors)
    assert response.tokens == tokens


def test_what_arrives_first_is_fetched_first(slow_server: ServerProcess) -> None:
    with slow_server.client() as client:
        client.encode(batch(0, rows=10_000), blocking=False)
        client.encode(["short"], blocking=False)
        assert [response.id for response in client.fetch()] == [2, 1]


def test_a_call_is_computed_while_the_caller_does_something_else(
    slow_server: ServerProcess,
) -> None:
    def delivered() -> int:
        return int(slow_server.status()["statistic"]["num_delivered"])

    with slow_server.client() as client:
        before = delivered()
        client.encode(batch(0, rows=10_000), blocking=False)
        most = client._welcome().limits.max_rows
        eventually(lambda: delivered() - before >= 10_000 // most)
        started = time.monotonic()
        (response,) = client.fetch()
        assert time.monotonic() - started < 0.5 * SECOND
        assert np.array_equal(response.embedding, expected(batch(0, rows=10_000)))


def test_all_are_fetched_in_the_order_of_sending(client: BertClient) -> None:
    assert client.fetch_all() is None
    for number, rows in enumerate([3_000, 1, 200]):
        client.encode(batch(number, rows), blocking=False)
    sent = [expected(batch(number, rows)) for number, rows in enumerate([3_000, 1, 200])]
    assert all(map(np.array_equal, client.fetch_all(), sent))
    for number, rows in enumerate([3_000, 1, 200]):
        client.encode(batch(number, rows), blocking=False)
    assert np.array_equal(client.fetch_all(concat=True), np.concatenate(sent))
    assert client.fetch_all() is None


def test_answers_to_single_texts_are_joined_as_rows(client: BertClient) -> None:
    for texts in ("a", ["b", "c"], "d"):
        client.encode(texts, blocking=False)
    assert np.array_equal(client.fetch_all(concat=True), expected(["a", "b", "c", "d"]))


def test_batches_take_the_arguments_of_encode(client: BertClient) -> None:
    batches = client.encode_async(
        [["a"], ["b"]], delay=0, blocking=False, show_progress_bar=True, dims=3
    )
    assert [response.embedding.shape for response in batches] == [(1, 3)] * 2


def test_lists_are_joined_to_one_list(fake_server: ServerProcess) -> None:
    with fake_server.client(output_fmt="list") as client:
        client.encode(batch(0), blocking=False)
        client.encode(batch(1), blocking=False)
        assert client.fetch_all(concat=True) == expected(batch(0) + batch(1)).tolist()
        client.encode(batch(0), blocking=False)
        assert client.fetch_all(sort=False) == [expected(batch(0)).tolist()]


def test_an_error_is_raised_by_fetch_and_the_others_stay(client: BertClient) -> None:
    client.encode(batch(1), blocking=False)
    client.encode(TEXTS, blocking=False, layers=99)
    client.encode((text for text in ["a", 5]), blocking=False)
    client.encode(batch(4), blocking=False)
    found: dict[int, Any] = {}
    errors = []
    while client.status["num_pending_request"]:
        try:
            found.update((response.id, response.embedding) for response in client.fetch())
        except (InvalidRequest, TypeError) as error:
            errors.append(type(error))
    assert sorted(errors, key=str) == sorted([InvalidRequest, TypeError], key=str)
    assert still_answers(client)


def test_an_error_is_raised_by_fetch_all_and_the_others_stay(client: BertClient) -> None:
    client.encode(batch(1), blocking=False)
    client.encode(TEXTS, blocking=False, layers=99)
    client.encode(batch(3), blocking=False)
    with pytest.raises(InvalidRequest):
        client.fetch_all()
    assert client.status["pending_request"] == {1, 3}
    assert np.array_equal(client.fetch_all(concat=True), expected(batch(1) + batch(3)))


def welcome_and_talk_nonsense(server: zmq.Socket[Any], until: threading.Event) -> None:
    greeting = Welcome("a test", "ready", Limits(), DEFAULT_VIEW, {"hidden_size": DIM})
    while not until.is_set():
        if server.poll(50):
            route, _, header = server.recv_multipart()[:3]
            is_hello = msgpack.unpackb(header)["type"] == "hello"
            server.send_multipart([route, *(greeting.to_frames() if is_hello else [b"nonsense"])])
    server.close()


def test_a_server_that_talks_nonsense_ends_all_that_is_pending_and_can_be_tried_again() -> None:
    context: zmq.Context[Any] = zmq.Context()
    server = context.socket(zmq.ROUTER)
    server.linger = 0
    port = server.bind_to_random_port("tcp://127.0.0.1")
    over = threading.Event()
    with ThreadPoolExecutor(1) as pool, BertClient(port=port, ignore_all_checks=True) as client:
        talking = pool.submit(welcome_and_talk_nonsense, server, over)
        for _ in range(2):
            background = client._process.background()
            with background.locked():  # so that both are on their way when the answer comes
                client.encode(TEXTS, blocking=False)
                client.encode(TEXTS, blocking=False)
            for _ in range(2):
                with pytest.raises(MalformedMessage, match="cannot be read"):
                    client.fetch_all()
            assert client.fetch_all() is None
            eventually(lambda before=background: before.is_over)
        over.set()
        talking.result(5 * SECOND)
    context.term()


def test_a_mistake_that_can_be_seen_is_raised_at_once(client: BertClient) -> None:
    with pytest.raises(TypeError, match="row 0 is int"):
        client.encode([5], blocking=False)
    with pytest.raises(TypeError, match="unknown"):
        client.encode_async(batches(3), unknown=True)
    assert client.fetch_all() is None


def test_a_call_to_nobody_fails_at_once() -> None:
    with BertClient(port=1, ignore_all_checks=True, connect_timeout=200) as client:
        with pytest.raises(ServerUnreachable):
            client.encode(TEXTS, blocking=False)
        assert client.fetch_all() is None


def test_a_call_that_is_never_answered_times_out_in_fetch(slow_server: ServerProcess) -> None:
    with slow_server.client(timeout=300) as client:
        client.encode("fake:sleep 1.5", blocking=False)
        with pytest.raises(TimeoutError):
            client.fetch_all()


def test_threads_send_while_another_fetches(fake_server: ServerProcess) -> None:
    with fake_server.client() as client, ThreadPoolExecutor(5) as pool:
        sent = threading.Event()

        def send(thread: int) -> None:
            for number in range(20):
                client.encode(batch(thread * 20 + number), blocking=False)
                sent.set()

        def fetch() -> list[Response]:
            sent.wait(5 * SECOND)
            return list(client.fetch())

        senders = [pool.submit(send, thread) for thread in range(4)]
        fetched = pool.submit(fetch).result(20 * SECOND)
        for sender in senders:
            sender.result(20 * SECOND)
        fetched += list(client.fetch())
        assert sorted(response.id for response in fetched) == list(range(1, 81))


def test_closing_ends_a_fetch_that_waits(slow_server: ServerProcess) -> None:
    client = slow_server.client()
    client.encode("fake:sleep 2", blocking=False)
    with ThreadPoolExecutor(1) as pool:
        fetching = pool.submit(client.fetch_all)
        client.close()
        with pytest.raises(ServerUnreachable, match="closed"):
            fetching.result(1.5 * SECOND)
    with pytest.raises(ValueError, match="closed"):
        client.encode(TEXTS, blocking=False)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # it should have been closed
def test_a_client_that_is_dropped_leaves_no_thread(fake_server: ServerProcess) -> None:
    client = fake_server.client()
    client.encode(TEXTS, blocking=False)
    client.fetch_all()
    names = [thread.name for thread in threading.enumerate()]
    assert "bert-serving-client" in names
    del client
    gc.collect()
    eventually(lambda: "bert-serving-client" not in [t.name for t in threading.enumerate()])


FORKING = """
import os, sys
import numpy as np
from bert_serving.client import BertClient
from bert_serving.server.model.fake import fake_embedding

client = BertClient(port=int(sys.argv[1]), timeout=20_000)
client.encode(["parent"], blocking=False)
pid = os.fork()
if pid == 0:
    assert client.fetch_all() is None
    client.encode(["child"], blocking=False)
    (vectors,) = client.fetch_all()
    assert np.array_equal(vectors[0], fake_embedding("child", 384))
    sys.exit(0)
assert os.waitpid(pid, 0)[1] == 0
(vectors,) = client.fetch_all()
assert np.array_equal(vectors[0], fake_embedding("parent", 384))
print("all right")
"""


def test_a_forked_child_has_nothing_pending(fake_server: ServerProcess) -> None:
    ran = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKING, str(fake_server.port)],
        capture_output=True,
        text=True,
        timeout=60 * SECOND,
    )
    assert (ran.stdout, ran.stderr, ran.returncode) == ("all right\n", "", 0)


# batches from a generator


def test_batches_of_a_generator_are_all_encoded(client: BertClient) -> None:
    responses = in_order(client.encode_async(batches(200), delay=0))
    assert len(responses) == 200
    for number, response in enumerate(responses):
        assert np.array_equal(response.embedding, expected(batch(number)))


def test_no_more_batches_are_drawn_than_wanted(client: BertClient) -> None:
    source = batches(10)
    assert len(list(client.encode_async(source, max_num_batch=4))) == 4
    assert next(source) == batch(4)


def test_options_hold_for_every_batch(client: BertClient) -> None:
    source = ([["a", "b"]] for _ in range(3))
    for response in client.encode_async(source, None, 0.0, is_tokenized=True, show_tokens=True):
        assert np.array_equal(response.embedding, expected([["a", "b"]]))
        assert response.tokens == [fake_tokens(["a", "b"])]


def test_a_slow_generator_loses_nothing(client: BertClient) -> None:
    answered = threading.Semaphore(1)

    def slow() -> Iterator[list[str]]:
        for number in range(5):
            assert answered.acquire(timeout=5 * SECOND)  # until what came before has an answer
            yield batch(number)

    found = []
    for response in client.encode_async(slow()):
        found.append(response.id)
        answered.release()
    assert found == [1, 2, 3, 4, 5]


def test_an_error_of_the_generator_comes_after_the_batches_before_it(client: BertClient) -> None:
    def broken() -> Iterator[list[str]]:
        yield from batches(3)
        raise KeyError("the file ended here")

    stream = client.encode_async(broken())
    assert len([next(stream) for _ in range(3)]) == 3
    with pytest.raises(KeyError, match="the file ended here"):
        next(stream)
    assert list(stream) == []


def test_an_error_of_one_batch_leaves_the_others(client: BertClient) -> None:
    stream = client.encode_async(iter([["a"], ["b", 5], ["c"]]))
    found: list[Response | None] = []
    while True:
        try:
            found.append(next(stream))
        except TypeError:
            found.append(None)
        except StopIteration:
            break
    answered = in_order(response for response in found if response is not None)
    assert (len(found), len(answered)) == (3, 2)
    assert np.array_equal(
        np.concatenate([response.embedding for response in answered]), expected(["a", "c"])
    )
    assert still_answers(client)


def test_a_generator_is_not_drawn_from_far_ahead_of_the_taker(client: BertClient) -> None:
    drawn = itertools.count()
    last = 0

    def endless() -> Iterator[list[str]]:
        nonlocal last
        for number in drawn:
            last = number
            yield batch(number, rows=100)

    stream = client.encode_async(endless(), delay=0)
    for _ in range(10):
        next(stream)
    eventually(lambda: last >= MAX_ROWS_AHEAD // 100)
    assert last <= 12 + MAX_ROWS_AHEAD // 100
    stream.close()
    assert list(stream) == []
    assert still_answers(client)


def test_two_streams_and_fetch_keep_apart(client: BertClient) -> None:
    client.encode(["apart"], blocking=False)
    one = client.encode_async(([f"one {n}"] for n in range(20)), delay=0)
    two = client.encode_async(([f"two {n}"] for n in range(20)), delay=0)
    ones, twos = in_order(one), in_order(two)
    assert np.array_equal(
        np.concatenate([r.embedding for r in ones]), expected([f"one {n}" for n in range(20)])
    )
    assert np.array_equal(
        np.concatenate([r.embedding for r in twos]), expected([f"two {n}" for n in range(20)])
    )
    assert np.array_equal(client.fetch_all(concat=True), expected(["apart"]))


# the client for threads


def test_more_calls_than_a_concurrent_client_may_make_wait_their_turn(
    slow_server: ServerProcess,
) -> None:
    with ConcurrentBertClient(max_concurrency=2, port=slow_server.port) as client:
        assert client.max_concurrency == 2
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda n: client.encode(texts=batch(n)), range(8)))
        assert all(np.array_equal(a, expected(batch(n))) for n, a in enumerate(answers))
        assert len(client._process.pool._idle) <= 2


def test_a_turn_that_does_not_come_times_out(slow_server: ServerProcess) -> None:
    client = ConcurrentBertClient(max_concurrency=1, port=slow_server.port, timeout=3_000)
    with client, ThreadPoolExecutor(1) as pool:
        long = pool.submit(client.encode, "fake:sleep 1")
        eventually(client._process.pool._places.empty)
        client.timeout = 100
        with pytest.raises(RequestTimeout, match="max_concurrency"):
            client.encode(TEXTS)
        long.result(5 * SECOND)


def test_a_concurrent_client_does_what_it_could_not(fake_server: ServerProcess) -> None:
    with ConcurrentBertClient(port=fake_server.port) as client:
        client.encode(TEXTS, blocking=False)
        assert np.array_equal(client.fetch_all(concat=True), expected(TEXTS))
        assert len(list(client.encode_async(batches(3), delay=0))) == 3
        assert client.server_config["num_worker"] == 2
        assert client.server_status["state"] == "ready"


def test_an_asyncio_client_takes_a_separator(fake_server: ServerProcess) -> None:
    import asyncio

    async def calls() -> None:
        async with AsyncBertClient(port=fake_server.port, pair_separator=" ||| ") as client:
            assert np.array_equal(await client.encode(["a ||| b"]), expected([("a", "b")]))
            assert (await client.tokenize("a ||| b")).tokens == fake_tokens(("a", "b"))

    asyncio.run(asyncio.wait_for(calls(), 30 * SECOND))
