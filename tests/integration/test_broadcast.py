"""Groups: members get a copy of what others send there, whatever else happens to them."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zmq
from server_process import SECOND, ServerProcess, Starter, eventually

from bert_serving.client import AsyncBertClient, BertClient, Broadcast, BroadcastWarning
from bert_serving.client.broadcasts import MAX_UNREAD_BYTES
from bert_serving.client.errors import InvalidRequest, RequestTimeout, ServerUnreachable
from bert_serving.client.frames import decode_message, encode_message
from bert_serving.client.group_messages import Membership
from bert_serving.client.protocol import parse_answer
from bert_serving.client.sockets import send_frames
from bert_serving.server.model.fake import fake_embedding, fake_tokens

DIM = 384
TEXTS = ["First do it", "then do it right", "then do it better"]
SOON = 5_000 * SECOND  # ms: longest wait for what must come
QUIET = 300  # ms without a message: no more will come


def expected(rows: Any) -> npt.NDArray[np.float32]:
    return np.stack([fake_embedding(row, DIM) for row in rows])


def heard(client: BertClient) -> Broadcast:
    """Return the next broadcast, which must come."""
    return next(iter(client.listen(SOON)))


def heard_nothing(client: BertClient) -> bool:
    return list(client.listen(QUIET)) == []


def num_members(server: ServerProcess) -> int:
    return int(server.status()["statistic"]["num_members"])


def still_answers(client: BertClient) -> bool:
    return np.array_equal(client.encode(TEXTS), expected(TEXTS))


def test_members_get_what_another_sends(fake_server: ServerProcess) -> None:
    one, two, sender = (fake_server.client(identity=name) for name in ("one", "two", "sender"))
    with one, two, sender:
        one.join("readers")
        two.join("readers")
        vectors = sender.encode(TEXTS, group="readers")
        assert np.array_equal(vectors, expected(TEXTS))
        for member in (one, two):
            broadcast = heard(member)
            assert (broadcast.group, broadcast.sender) == ("readers", "sender")
            assert np.array_equal(broadcast.embedding, vectors)
            assert broadcast.tokens is None
            assert heard_nothing(member)


def test_a_sender_that_is_a_member_gets_only_what_others_send(fake_server: ServerProcess) -> None:
    with fake_server.client() as one, fake_server.client() as two:
        one.join("both")
        two.join("both")
        assert np.array_equal(one.encode("from one", group="both"), fake_embedding("from one", DIM))
        assert np.array_equal(two.encode(["from two"], group="both"), expected(["from two"]))
        assert np.array_equal(heard(one).embedding, expected(["from two"]))
        assert np.array_equal(heard(two).embedding, expected(["from one"]))
        assert heard_nothing(one) and heard_nothing(two)


def test_a_call_of_many_requests_arrives_whole(fake_server: ServerProcess) -> None:
    rows = [f"row {number}" for number in range(20_000)]
    with fake_server.client() as member, fake_server.client() as sender:
        member.join("bulk")
        with ThreadPoolExecutor(1) as pool:
            sending = pool.submit(sender.encode, iter(rows), group="bulk")
            assert np.array_equal(heard(member).embedding, expected(rows))
            assert np.array_equal(sending.result(), expected(rows))


def test_tokens_formats_and_token_vectors_come_along(fake_server: ServerProcess) -> None:
    with fake_server.client(output_fmt="list") as member, fake_server.client() as sender:
        member.join("rich")
        sender.encode(["a b"], show_tokens=True, pooling="none", group="rich")
        broadcast = heard(member)
        assert broadcast.tokens == [fake_tokens("a b")]
        assert np.shape(broadcast.embedding[0]) == (len(fake_tokens("a b")), DIM)
        assert isinstance(broadcast.embedding[0], list)


def test_calls_that_are_not_waited_for_are_sent_too(fake_server: ServerProcess) -> None:
    with fake_server.client() as member, fake_server.client() as sender:
        member.join("later")
        sender.encode(TEXTS, blocking=False, group="later")
        assert np.array_equal(heard(member).embedding, expected(TEXTS))
        assert np.array_equal(sender.fetch_all(concat=True), expected(TEXTS))
        stream = sender.encode_async(([f"row {n}"] for n in range(3)), delay=0, group="later")
        assert len(list(stream)) == 3
        sums = {float(heard(member).embedding.sum()) for _ in range(3)}
        assert sums == {float(expected([f"row {n}"]).sum()) for n in range(3)}


def test_groups_are_apart_and_can_be_left(fake_server: ServerProcess) -> None:
    with fake_server.client() as member, fake_server.client() as sender:
        member.join("one")
        member.join("two")
        sender.encode("to two", group="two")
        sender.encode("to three", group="three")
        assert heard(member).group == "two"
        member.leave("two")
        sender.encode("to two", group="two")
        sender.encode("to one", group="one")
        assert heard(member).group == "one"
        assert heard_nothing(member)
        member.leave("one")
        with pytest.raises(ValueError, match="in no group"):
            member.listen()


def test_broadcasts_wait_until_somebody_listens(fake_server: ServerProcess) -> None:
    with fake_server.client() as member, fake_server.client() as sender:
        member.join("patient")
        for number in range(50):
            sender.encode(f"number {number}", group="patient")
        found = [broadcast.embedding for broadcast in member.listen(QUIET)]
        wanted = expected([f"number {number}" for number in range(50)])
        assert np.array_equal(np.concatenate(found), wanted)


def test_what_is_not_read_is_bounded_and_the_oldest_is_dropped(fake_server: ServerProcess) -> None:
    rows = [f"row {number}" for number in range(20_000)]
    calls = MAX_UNREAD_BYTES // (len(rows) * DIM * 4) + 3
    with fake_server.client() as member, fake_server.client() as sender:
        member.join("too much")
        for _ in range(calls):
            sender.encode(rows, group="too much")
        unread = member._process.background().fleet.only.broadcasts
        eventually(lambda: unread.dropped >= 2)
        sender.encode("last", group="too much")
        with pytest.warns(BroadcastWarning, match="dropped"):
            found = list(member.listen(QUIET))
        assert 1 < len(found) <= calls - 1
        assert np.array_equal(found[-1].embedding, expected(["last"]))
        assert heard_nothing(member)


def test_an_error_is_the_senders_alone(fake_server: ServerProcess) -> None:
    with fake_server.client() as member, fake_server.client() as sender:
        member.join("errors")
        with pytest.raises(InvalidRequest):
            sender.encode(TEXTS, layers=99, group="errors")
        sender.encode("after", group="errors")
        assert np.array_equal(heard(member).embedding, expected(["after"]))


@pytest.mark.parametrize("group", ["", "x" * 65, 5])
def test_a_group_has_a_short_name(client: BertClient, group: Any) -> None:
    for call in (client.join, client.leave, lambda name: client.encode("a", group=name)):
        with pytest.raises(ValueError, match="group="):
            call(group)


def test_a_member_that_is_gone_is_no_member_and_hurts_nobody(start_server: Starter) -> None:
    server = start_server()
    with server.client() as member, server.client() as sender:
        member.join("left")
        gone = [server.client() for _ in range(5)]
        for client in gone:
            client.join("left")
            client.close()
        for number in range(20):
            sender.encode(f"number {number}", group="left")
        assert len(list(member.listen(QUIET))) == 20
        assert num_members(server) == 1


def test_members_that_are_gone_leave_room_for_others(start_server: Starter) -> None:
    server = start_server()

    def crowd(kind: str) -> None:
        with zmq.Context() as context, ExitStack() as stack:
            for number in range(16):
                socket = stack.enter_context(context.socket(zmq.DEALER))
                socket.linger = 0
                socket.connect(f"tcp://127.0.0.1:{server.port}")
                names = [
                    f"{kind} {number} {n}" for n in range(62)
                ]  # of 16, almost all there can be
                eventually(partial(joined, socket, names))
            assert num_members(server) >= 16 * 62

    def joined(socket: zmq.Socket[Any], names: list[str]) -> bool:
        socket.send_multipart(Membership(1, names).to_frames())
        assert socket.poll(SOON)
        return isinstance(parse_answer(socket.recv_multipart()), Membership)

    crowd("first")
    crowd("second")


def test_a_client_that_was_killed_is_no_member(start_server: Starter) -> None:
    server = start_server()
    script = (
        "import sys; from bert_serving.client import BertClient\n"
        "client = BertClient(port=int(sys.argv[1])); client.join('killed')\n"
        "print('joined', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(server.port)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "joined\n"
    process.kill()
    process.communicate()
    with server.client() as sender:

        def is_forgotten() -> bool:
            sender.encode("anybody?", group="killed")
            return num_members(server) == 0

        eventually(is_forgotten)
        assert still_answers(sender)


def test_a_member_that_reads_nothing_is_dropped_and_hurts_nobody(start_server: Starter) -> None:
    server = start_server()
    context: zmq.Context[Any] = zmq.Context()
    deaf = context.socket(zmq.DEALER)
    deaf.linger = 0
    deaf.rcvhwm = 1
    deaf.rcvbuf = 4096
    deaf.connect(f"tcp://127.0.0.1:{server.port}")
    send_frames(deaf, Membership(1, ["deaf"]).to_frames())
    assert deaf.poll(int(SOON))
    with server.client() as sender:
        rows = [f"row {number}" for number in range(20_000)]

        def is_dropped() -> bool:
            sender.encode(rows, group="deaf")
            return num_members(server) == 0

        eventually(is_dropped, 60 * SECOND)
        assert still_answers(sender)
    deaf.close()
    context.term()


def test_members_are_members_again_after_a_restart(start_server: Starter) -> None:
    first = start_server()
    with first.client() as member:
        member.join("lasting")
        first.stop()
        second = start_server(port=first.port)
        with second.client() as sender:

            def is_heard() -> bool:
                sender.encode(TEXTS, group="lasting")
                return bool(list(member.listen(QUIET)))

            eventually(is_heard, 30 * SECOND)


def test_joining_a_server_that_is_gone_ends_with_an_error(start_server: Starter) -> None:
    server = start_server()
    with server.client(timeout=500) as member:
        member.join("one")
        os.kill(server.pid, signal.SIGKILL)
        server.kill_all()
        with pytest.raises(RequestTimeout):
            member.join("two")


def test_closing_ends_a_listener_that_waits(fake_server: ServerProcess) -> None:
    member = fake_server.client()
    member.join("closing")
    begun = threading.Event()

    def listen() -> list[Broadcast]:
        messages = member.listen(-1)
        begun.set()
        return list(messages)

    with ThreadPoolExecutor(1) as pool:
        listening = pool.submit(listen)
        begun.wait(5 * SECOND)
        member.close()
        with pytest.raises(ServerUnreachable, match="closed"):
            listening.result(5 * SECOND)


def test_a_listener_ends_after_its_time_without_a_message(fake_server: ServerProcess) -> None:
    with fake_server.client() as member:
        member.join("silent")
        started = time.monotonic()
        assert list(member.listen(200)) == []
        assert 0.2 <= time.monotonic() - started < 1 * SECOND


def test_a_forked_child_is_in_no_group(fake_server: ServerProcess) -> None:
    script = (
        "import os, sys; from bert_serving.client import BertClient\n"
        "client = BertClient(port=int(sys.argv[1]), timeout=10_000); client.join('family')\n"
        "if (pid := os.fork()) == 0:\n"
        "    try:\n        client.listen()\n"
        "    except ValueError:\n"
        "        client.encode('from the child', group='family'); sys.exit(0)\n"
        "assert os.waitpid(pid, 0)[1] == 0\n"
        "assert len(list(client.listen(300))) == 1; client.close(); print('all right')"
    )
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script]
    ran = subprocess.run(
        [*command, str(fake_server.port)], capture_output=True, text=True, timeout=30 * SECOND
    )
    assert (ran.stdout, ran.stderr) == ("all right\n", "")


def test_an_asyncio_client_joins_sends_and_listens(fake_server: ServerProcess) -> None:
    async def calls() -> None:
        options: dict[str, Any] = {"port": fake_server.port, "timeout": SOON}
        one, two = AsyncBertClient(identity="one", **options), AsyncBertClient(**options)
        async with one, two:
            with pytest.raises(ValueError, match="in no group"):
                await anext(one.listen())
            await asyncio.gather(one.join("loop"), two.join("loop"))
            assert np.array_equal(await one.encode(TEXTS, group="loop"), expected(TEXTS))
            async for broadcast in two.listen():
                assert broadcast.sender == "one"
                assert np.array_equal(broadcast.embedding, expected(TEXTS))
                break
            assert [found async for found in one.listen(QUIET)] == []
            waiting = asyncio.create_task(anext(two.listen()))
            await one.encode(["more"], group="loop")
            assert np.array_equal((await waiting).embedding, expected(["more"]))
            await two.leave("loop")
            await one.encode(["gone"], group="loop")
            with pytest.raises(ValueError, match="in no group"):
                await anext(two.listen())

    asyncio.run(asyncio.wait_for(calls(), 60 * SECOND))


@pytest.mark.parametrize(
    "header",
    [
        {"type": "membership", "id": 1, "groups": [""]},
        {"type": "membership", "id": 1, "groups": ["x"] * 65},
        {"type": "membership", "id": 1},
        {"type": "broadcast", "group": {}, "connection": ""},
    ],
    ids=["an empty name", "too many", "no groups", "a broadcast"],
)
def test_what_no_member_may_send_is_refused(
    fake_server: ServerProcess, client: BertClient, header: dict[str, Any]
) -> None:
    context: zmq.Context[Any] = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.linger = 0
    socket.connect(f"tcp://127.0.0.1:{fake_server.port}")
    send_frames(socket, encode_message(header))
    assert socket.poll(int(SOON))
    answer, _ = decode_message(socket.recv_multipart())
    assert (answer["type"], answer["code"]) == ("error", "invalid_request")
    assert answer["id"] == header.get("id")
    socket.close()
    context.term()
    assert still_answers(client)
