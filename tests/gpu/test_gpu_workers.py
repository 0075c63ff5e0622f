"""Several workers share a GPU."""

from __future__ import annotations

import numpy as np

from bert_serving.client import BertClient
from bert_serving.server import BertServer, get_args_parser


def test_two_workers_on_one_gpu_answer_the_same():
    options = ["-port", "0", "-num_worker", "2", "-device_map", "0", "-max_batch_tokens", "4096"]
    rows = [f"sentence {number} of many" for number in range(2000)]
    with (
        BertServer(get_args_parser().parse_args(options)) as server,
        BertClient(port=server.port) as bc,
    ):
        workers = bc.server_status["workers"]
        assert [worker["device"] for worker in workers] == ["cuda:0", "cuda:0"]
        first, second = (bc.encode(rows) for _ in range(2))
    cosines = (
        (first * second).sum(1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)
    )
    assert cosines.min() >= 0.9995
