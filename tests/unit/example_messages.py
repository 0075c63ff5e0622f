"""One example of every message: what the golden frames and the protocol's text show."""

from __future__ import annotations

from typing import Any

import numpy as np

from bert_serving.client.admin_messages import Admin, AdminAnswer
from bert_serving.client.group_messages import BroadcastPart, Membership
from bert_serving.client.messages import (
    Cancel,
    Encode,
    ErrorAnswer,
    GroupPart,
    Hello,
    Limits,
    Result,
    RowTokens,
    Status,
    StatusRequest,
    ViewArray,
    Welcome,
)
from bert_serving.client.rows import pack_rows
from bert_serving.client.view import DEFAULT_VIEW, View

MODEL = {
    "name": "embedded",
    "architecture": "bert",
    "num_layers": 6,
    "hidden_size": 384,
    "max_length": 512,
    "vocab_size": 30522,
    "dtype": "float32",
    "device": "cpu",
}

REQUESTS: dict[str, Any] = {
    "hello": Hello(client="example/1"),
    "encode": Encode(
        id=1, rows=2, ttl_ms=30000, views={"embedding": View()}, buffer=pack_rows(["hi", "a b"])
    ),
    "encode_everything": Encode(
        id=2**63 - 1,
        rows=2,
        ttl_ms=604_800_000,
        views={
            "a": View(
                layers=(-1, -2),
                layer_reduce="mean",
                pooling="mean_max",
                normalize=True,
                dims=128,
                dtype="float16",
            ),
            "b": View(pooling="none"),
        },
        buffer=pack_rows([["hi"], (["a", "b"], ["c"])]),
        is_tokenized=True,
        max_length=64,
        show_tokens=True,
    ),
    "encode_pairs_for_tokens_only": Encode(
        id=0,
        rows=2,
        ttl_ms=0,
        views={},
        buffer=pack_rows([("who?", "me"), "żółw 🐢"]),
        show_tokens=True,
    ),
    "encode_for_a_group": Encode(
        id=8,
        rows=2,
        ttl_ms=30000,
        views={"embedding": View()},
        buffer=pack_rows(["hi", "a b"]),
        group=GroupPart(name="readers", sender="example", call=7, start=64, total=66),
    ),
    "cancel": Cancel(ids=[1, 300]),
    "status": StatusRequest(id=5),
    "membership": Membership(id=6, groups=["readers", "żółw"]),
    "admin_scale": Admin(id=9, command="scale", num_worker=4),
    "admin_reload": Admin(id=9, command="reload", model_dir="/models/bert"),
    "admin_status": Admin(id=10, command="status"),
    "admin_terminate": Admin(id=11, command="terminate"),
}

ANSWERS: dict[str, Any] = {
    "welcome": Welcome(
        server="bert-serving/2.0.0",
        state="ready",
        limits=Limits(max_rows=64, max_bytes=32768, window=4),
        default_view=DEFAULT_VIEW,
        model=MODEL,
    ),
    "welcome_of_a_starting_server": Welcome(
        server="bert-serving/2.0.0",
        state="starting",
        limits=Limits(),
        default_view=DEFAULT_VIEW,
        model={},
    ),
    "welcome_of_a_server_with_a_limit_of_its_own": Welcome(
        server="bert-serving/2.0.0",
        state="ready",
        limits=Limits(max_rows=64, max_bytes=4096, window=4, max_request_bytes=4096),
        default_view=DEFAULT_VIEW,
        model=MODEL,
    ),
    "welcome_of_a_server_with_several_workers": Welcome(
        server="bert-serving/2.0.0",
        state="ready",
        limits=Limits(max_rows=64, max_bytes=32768, window=13, workers=2, min_rows=32),
        default_view=DEFAULT_VIEW,
        model=MODEL,
    ),
    "welcome_on_a_named_connection": Welcome(
        server="bert-serving/2.0.0",
        state="ready",
        limits=Limits(),
        default_view=DEFAULT_VIEW,
        model=MODEL,
        connection="8f14e45f",
    ),
    "result": Result(
        id=1,
        views={"embedding": ViewArray(np.array([[0.5, -1.0], [2.0, 0.25]], np.float32))},
        n_tokens=[3, 4],
        truncated=[1],
        queue_ms=0.5,
        tokenize_ms=0.25,
        compute_ms=4.0,
    ),
    "result_with_tokens": Result(
        id=2,
        views={
            "a": ViewArray(np.array([[1.0, 0.5]], np.float16)),
            "b": ViewArray(np.array([[1.0], [2.0], [3.0]], np.float32), [0, 3]),
        },
        n_tokens=[3],
        tokens=RowTokens(
            texts=["[CLS]", "hi", "[SEP]"],
            ids=np.array([101, 7632, 102], np.int32),
            segment_ids=np.array([0, 0, 0], np.uint8),
        ),
    ),
    "error": ErrorAnswer(id=1, code="overloaded", message="the queue is full", retry_after_ms=50),
    "error_that_names_no_request": ErrorAnswer(
        id=None, code="invalid_request", message="unknown message type 'bye'"
    ),
    "status": Status(id=5, status={"state": "ready", "workers": [{"id": 0, "device": "cpu"}]}),
    "membership": Membership(id=6, groups=[]),
    "broadcast": BroadcastPart(
        group=GroupPart(name="readers", sender="example", call=7, start=0, total=2),
        connection="00c0ffee",
        result=Result(
            id=1,
            views={"embedding": ViewArray(np.array([[0.5, -1.0], [2.0, 0.25]], np.float32))},
            n_tokens=[3, 4],
        ),
    ),
    "admin_accepted": AdminAnswer(id=9, answer="accepted", steps=4),
    "admin_changed": AdminAnswer(id=9, answer="changed"),
    "admin_refused": AdminAnswer(id=9, answer="refused", cause="another change is under way"),
    "admin_status": AdminAnswer(id=10, answer="status", status={"pid": 7, "change": None}),
    "admin_terminating": AdminAnswer(id=11, answer="terminating", pid=7),
}
