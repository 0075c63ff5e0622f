"""What a caller can pass to `encode()` and its relatives, and what comes back."""

from __future__ import annotations

import asyncio
import itertools
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from server_process import SECOND, ServerProcess, Starter, memory_kib

from bert_serving.client import AsyncBertClient, BertClient, TruncationWarning, View
from bert_serving.client.errors import InvalidRequest, TooLarge
from bert_serving.server.model.fake import (
    fake_embedding,
    fake_token_embeddings,
    fake_tokens,
)

DIM = 384
TEXTS = ["First do it", "then do it right", "then do it better", "", "Grüße, 你好 🤗"]
PAIRS = [("a question", "an answer"), ("", "only the second"), ("你好", "🤗")]
TOKENS = [["first", "do", "it"], [], ["##ly"]]
TOKEN_PAIRS = [(["a", "b"], ["c"]), ([], ["d"])]
MANY = [f"text number {number}" for number in range(100_000)]


def expected(rows: Any) -> npt.NDArray[np.float32]:
    return np.stack([fake_embedding(row, DIM) for row in rows])


def unit_length(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def still_answers(client: BertClient) -> bool:
    return np.array_equal(client.encode(TEXTS), expected(TEXTS))


def requests_seen(server: ServerProcess) -> int:
    return int(server.status()["statistic"]["num_total_request"])


# kinds of input


def test_a_single_text_gives_one_vector(client: BertClient) -> None:
    vector = client.encode("First do it")
    assert vector.shape == (DIM,)
    assert vector.dtype == np.float32
    assert np.array_equal(vector, fake_embedding("First do it", DIM))


CONTAINERS: dict[str, Any] = {
    "list": list,
    "tuple": tuple,
    "iterator": iter,
    "generator": lambda texts: (text for text in texts),
    "dict values": lambda texts: dict(enumerate(texts)).values(),
    "numpy": np.array,
    "numpy objects": lambda texts: np.array(texts, dtype=object),
    "series": pd.Series,
    "series with an index of its own": lambda texts: pd.Series(texts, index=[5, 4, 3, 2, 1]),
}


@pytest.mark.parametrize("kind", CONTAINERS.values(), ids=CONTAINERS)
def test_texts_come_in_any_container_that_has_an_order(client: BertClient, kind: Any) -> None:
    assert np.array_equal(client.encode(kind(TEXTS)), expected(TEXTS))


def test_subclasses_of_str_are_texts(client: BertClient) -> None:
    assert np.array_equal(client.encode(np.str_("one")), fake_embedding("one", DIM))
    assert np.array_equal(client.encode([np.str_("one"), "two"]), expected(["one", "two"]))


def test_pairs_of_texts_are_tuples_also_among_texts(client: BertClient) -> None:
    rows = [*PAIRS, "a text"]
    assert np.array_equal(client.encode(rows), expected(rows))


def test_tokens_and_pairs_of_tokens_can_be_sent(client: BertClient) -> None:
    rows = [*TOKENS, *TOKEN_PAIRS]
    assert np.array_equal(client.encode(rows, is_tokenized=True), expected(rows))


def test_an_iterator_is_drawn_from_only_as_fast_as_it_is_served(
    fake_server: ServerProcess, client: BertClient
) -> None:
    class EnoughError(Exception):
        pass

    def endless() -> Iterator[str]:
        for number in itertools.count():
            if number == 30_000:
                raise EnoughError
            yield f"text {number}"

    before = requests_seen(fake_server)
    with pytest.raises(EnoughError):
        client.encode(endless())
    assert requests_seen(fake_server) - before > 10_000 // client._welcome().limits.max_rows
    assert still_answers(client)


def test_an_iterators_own_error_ends_an_asyncio_call(fake_server: ServerProcess) -> None:
    def broken() -> Iterator[str]:
        yield from MANY[:5_000]
        raise KeyError("the file ended here")

    async def calls() -> None:
        async with AsyncBertClient(port=fake_server.port, timeout=5_000 * SECOND) as client:
            with pytest.raises(KeyError, match="the file ended here"):
                await client.encode(broken())
            assert np.array_equal(await client.encode("a"), fake_embedding("a", DIM))

    asyncio.run(calls())


@pytest.mark.parametrize("empty", [[], (), iter([]), np.array([], dtype=str), pd.Series(dtype=str)])
def test_no_rows_give_no_rows_of_the_right_width(client: BertClient, empty: Any) -> None:
    vectors = client.encode(empty)
    assert (vectors.shape, vectors.dtype) == ((0, DIM), np.float32)


def test_no_rows_have_the_shape_that_the_view_says(client: BertClient) -> None:
    assert client.encode([], pooling="mean_max", layers=[-1, -2]).shape == (0, 4 * DIM)
    assert client.encode([], dims=5, dtype="float16").dtype == np.float16
    assert client.encode([], pooling="none") == []
    assert client.tokenize([]).tokens == []


def test_a_blank_row_is_encoded_or_refused_as_asked(client: BertClient) -> None:
    blanks = ["", "  ", "\n\t"]
    assert np.array_equal(client.encode(blanks), expected(blanks))
    assert client.tokenize("").tokens == fake_tokens("")
    with pytest.raises(ValueError, match="row 1 is blank"):
        client.encode(["a", " "], on_empty="error")
    with pytest.raises(ValueError, match="row 0 is blank"):
        client.encode([[]], is_tokenized=True, on_empty="error")
    with pytest.raises(ValueError, match="encode, error"):
        client.encode(["a"], on_empty="skip")
    assert still_answers(client)


# wrong input


WRONG_ROWS: dict[str, Any] = {
    "int": 7,
    "None": None,
    "float": float("nan"),
    "bytes": b"bytes",
    "list": ["a", "b"],
    "triple": ("a", "b", "c"),
    "half pair": ("a", None),
}


@pytest.mark.parametrize("row", WRONG_ROWS.values(), ids=WRONG_ROWS)
def test_a_wrong_row_is_named_and_nothing_is_sent(
    fake_server: ServerProcess, client: BertClient, row: Any
) -> None:
    before = requests_seen(fake_server)
    with pytest.raises(TypeError, match=f"row 1000 is .*{type(row).__name__}"):
        client.encode([*MANY[:1000], row])
    assert requests_seen(fake_server) == before
    assert still_answers(client)


@pytest.mark.parametrize("row", ["a text", ["a", 1], [["a"], ["b"], ["c"]], 3])
def test_a_row_that_is_no_list_of_tokens_is_named(client: BertClient, row: Any) -> None:
    with pytest.raises(TypeError, match=r"row 1 is .*is_tokenized=True"):
        client.encode([["fine"], row], is_tokenized=True)
    assert still_answers(client)


def test_a_wrong_row_in_the_middle_of_an_iterator_is_named(client: BertClient) -> None:
    with pytest.raises(TypeError, match="row 5000 is int 7"):
        client.encode(iter([*MANY[:5000], 7, *MANY]))
    assert still_answers(client)


@pytest.mark.parametrize("texts", [None, 5, b"bytes", {"a": 1}, {"a"}, 1.5])
def test_what_has_no_rows_in_order_is_refused(client: BertClient, texts: Any) -> None:
    with pytest.raises(TypeError, match=type(texts).__name__):
        client.encode(texts)
    assert still_answers(client)


def test_a_table_is_refused_rather_than_misread(client: BertClient) -> None:
    with pytest.raises(TypeError):
        client.encode(pd.DataFrame({"text": TEXTS}))
    with pytest.raises(TypeError):
        client.encode(np.array([TEXTS]))
    assert still_answers(client)


@pytest.mark.parametrize("kind", [list, iter], ids=["list", "iterator"])
def test_a_lone_surrogate_is_the_callers_value_error(client: BertClient, kind: Any) -> None:
    with pytest.raises(ValueError, match="surrogates"):
        client.encode(kind([*MANY[:300], "broken \ud83e"]))
    assert still_answers(client)


@pytest.mark.parametrize(
    "options",
    [
        {"pooling": "avg"},
        {"layers": 1.5},
        {"layers": []},
        {"layer_reduce": "max"},
        {"normalize": "yes"},
        {"dims": 0},
        {"dtype": "int8"},
        {"max_length": 0},
    ],
    ids=lambda options: next(iter(options)),
)
def test_an_option_that_does_not_exist_is_refused_before_anything_is_sent(
    fake_server: ServerProcess, client: BertClient, options: dict[str, Any]
) -> None:
    before = requests_seen(fake_server)
    with pytest.raises(ValueError, match=next(iter(options))):
        client.encode(TEXTS, **options)
    assert requests_seen(fake_server) == before


def test_what_only_the_model_can_know_is_an_invalid_request(client: BertClient) -> None:
    with pytest.raises(InvalidRequest, match="13"):
        client.encode(TEXTS, layers=13)
    with pytest.raises(InvalidRequest, match="max_length=2"):
        client.encode(TEXTS, max_length=2)
    assert still_answers(client)


# views


def test_each_call_chooses_its_own_view(client: BertClient) -> None:
    plain = expected(TEXTS)
    assert np.array_equal(client.encode(TEXTS, layers=[-1, -2]), np.tile(plain, 2))
    assert np.array_equal(client.encode(TEXTS, layers=[-1, -2], layer_reduce="mean"), plain)
    assert np.array_equal(client.encode(TEXTS, pooling="mean_max"), np.tile(plain, 2))
    assert np.array_equal(client.encode(TEXTS, pooling="CLS_TOKEN"), plain)
    assert np.array_equal(client.encode(TEXTS, dims=7), plain[:, :7])
    halves = client.encode(TEXTS, dtype=np.float16)
    assert halves.dtype == np.float16
    assert np.allclose(halves, plain, atol=1e-3)
    assert np.allclose(client.encode(TEXTS, normalize=True), unit_length(plain), atol=1e-6)
    cut = client.encode(TEXTS, dims=7, normalize=True)
    assert np.allclose(cut, unit_length(plain[:, :7]), atol=1e-6)


def test_pooling_none_gives_each_row_its_own_tokens_vectors(client: BertClient) -> None:
    rows = client.encode(TEXTS, pooling="none")
    assert [len(row) for row in rows] == [len(fake_tokens(text)) for text in TEXTS]
    for row, text in zip(rows, TEXTS, strict=True):
        assert np.array_equal(row, fake_token_embeddings(text, DIM))
    single = client.encode(TEXTS[0], pooling="NONE")
    assert np.array_equal(single, fake_token_embeddings(TEXTS[0], DIM))


def test_several_named_views_come_in_one_answer(client: BertClient) -> None:
    encoding = client.encode_detailed(
        TEXTS, {"short": {"dims": 3}, "tokens": View(pooling="none"), "both": {"layers": [1, 2]}}
    )
    assert list(encoding.views) == ["short", "tokens", "both"]
    assert np.array_equal(encoding.views["short"], expected(TEXTS)[:, :3])
    assert np.array_equal(encoding.views["both"], np.tile(expected(TEXTS), 2))
    assert np.array_equal(encoding.views["tokens"][0], fake_token_embeddings(TEXTS[0], DIM))


def test_an_encoding_tells_tokens_cuts_and_times(client: BertClient) -> None:
    long = "word " * 600
    encoding = client.encode_detailed([TEXTS[0], long], show_tokens=True)
    assert encoding.n_tokens.tolist() == [5, 512]
    assert encoding.truncated.tolist() == [False, True]
    assert encoding.tokens is not None and encoding.token_ids is not None
    assert encoding.tokens[0] == fake_tokens(TEXTS[0])
    assert [len(ids) for ids in encoding.token_ids] == [5, 512]
    assert encoding.queue_ms >= 0 and encoding.tokenize_ms > 0 and encoding.compute_ms > 0


def test_a_single_texts_encoding_is_that_of_its_only_row(client: BertClient) -> None:
    encoding = client.encode_detailed(TEXTS[0], show_tokens=True)
    assert encoding.views["embedding"].shape == (DIM,)  # type: ignore[union-attr]
    assert encoding.n_tokens == 5 and not encoding.truncated
    assert encoding.tokens == fake_tokens(TEXTS[0])


def test_show_tokens_returns_the_tokens_beside_the_vectors(client: BertClient) -> None:
    vectors, tokens = client.encode(TEXTS, show_tokens=True)
    assert np.array_equal(vectors, expected(TEXTS))
    assert tokens == [fake_tokens(text) for text in TEXTS]


def test_tokenize_returns_tokens_ids_and_segments(client: BertClient) -> None:
    tokens, ids, segments = client.tokenize([*TEXTS, ("a b", "c")])
    assert tokens[:5] == [fake_tokens(text) for text in TEXTS]
    assert [len(row) for row in ids] == [len(row) for row in tokens]
    assert segments[5].tolist() == [0, 0, 0, 0, 1, 1]
    one = client.tokenize("First do it")
    assert one.tokens == fake_tokens("First do it")
    assert one.ids.dtype == np.int32


def test_a_servers_options_are_the_default_view(start_server: Starter) -> None:
    options = "-pooling_strategy REDUCE_MEAN_MAX -pooling_layer -1 -2 -normalize -max_seq_len 8"
    server = start_server(*options.split())
    plain = expected(TEXTS)
    with server.client() as client:
        vectors = client.encode(TEXTS)
        assert vectors.shape == (5, 4 * DIM)
        assert np.allclose(vectors, unit_length(np.tile(plain, 4)), atol=1e-6)
        own = client.encode(TEXTS, pooling="mean", layers=-2, normalize=False)
        assert np.array_equal(own, plain)
        assert client.encode_detailed("word " * 20).n_tokens == 8


# rows that are cut


def test_cut_rows_give_one_warning_that_can_be_switched_off(
    fake_server: ServerProcess, client: BertClient
) -> None:
    rows = ["word " * 600, "short", "word " * 700]
    with pytest.warns(TruncationWarning, match="2 of 3 rows were cut to 512 tokens") as caught:
        client.encode(rows)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with pytest.warns(TruncationWarning, match="1 of 1 rows were cut to 4 tokens"):
        client.encode("one two three four", max_length=4)
    with warnings.catch_warnings(), fake_server.client(check_length=False) as quiet:
        warnings.simplefilter("error")
        quiet.encode(rows)
        client.encode_detailed(rows)


# shapes of the answer


def test_output_fmt_list_gives_nested_lists(fake_server: ServerProcess) -> None:
    with fake_server.client(output_fmt="list") as client:
        assert client.encode(TEXTS) == expected(TEXTS).tolist()
        assert client.encode(TEXTS[0]) == expected(TEXTS)[0].tolist()
        tokens = client.encode(TEXTS[:1], pooling="none")
        assert tokens == [fake_token_embeddings(TEXTS[0], DIM).tolist()]


def test_the_array_belongs_to_the_caller(client: BertClient) -> None:
    vectors = client.encode(TEXTS)
    vectors += 1
    rows = client.encode(TEXTS, pooling="none")
    rows[0][0, 0] = 5
    assert still_answers(client)


def test_a_progress_bar_counts_rows(
    client: BertClient, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    client.encode(MANY[:1000], show_progress_bar=True)
    shown = capsys.readouterr()
    assert "1.00k/1.00k" in shown.err and "row/s" in shown.err
    monkeypatch.setitem(sys.modules, "tqdm", None)
    client.encode(MANY[:1000], show_progress_bar=True)
    client.encode(iter(MANY[:1000]), show_progress_bar=True)
    shown = capsys.readouterr()
    assert "encode: 1000/1000 rows" in shown.err and "encode: 1000 rows" in shown.err
    assert shown.out == ""


# sizes


def test_a_bulk_call_is_complete_in_order_and_leaves_room_for_others(
    fake_server: ServerProcess, client: BertClient
) -> None:
    latencies = []
    answers: list[Any] = []

    def bulk() -> None:
        with fake_server.client() as other:
            answers.append(other.encode(MANY))

    thread = threading.Thread(target=bulk)
    thread.start()
    while thread.is_alive():
        started = time.monotonic()
        assert np.array_equal(client.encode("a single one"), fake_embedding("a single one", DIM))
        latencies.append(time.monotonic() - started)
    thread.join()
    assert len(latencies) > 5
    assert max(latencies) < 3 * SECOND
    (vectors,) = answers
    assert vectors.shape == (len(MANY), DIM)
    for start in range(0, len(MANY), 1000):
        part = slice(start, start + 1000)
        assert np.array_equal(vectors[part], expected(MANY[part]))


def test_a_bulk_call_leaves_no_memory_behind(
    fake_server: ServerProcess, client: BertClient
) -> None:
    def grown() -> dict[int, list[int]]:
        """What each process that has grown in twenty calls had after each, in KiB."""
        after = []
        for _ in range(20):
            client.encode(MANY)
            after.append({pid: memory_kib(pid) for pid in fake_server.processes()})
        assert len(after[0]) >= 4  # supervisor, broker, two workers
        sizes = {pid: [kib[pid] for kib in after] for pid in after[0]}
        # one answer in a hundred kept would add 24 MiB
        return {p: kib for p, kib in sizes.items() if min(kib[-4:]) >= max(kib[:4]) + (4 << 10)}

    # a longer queue on a busy machine may take room that the allocator keeps: once, while what
    # calls leave behind grows with each
    for _ in range(3):
        if not (seen := grown()):
            return
    pytest.fail(f"memory grows with each call: {seen}")


def test_a_text_of_3_mb_is_cut_like_any_other(client: BertClient) -> None:
    text = "word " * 600_000
    encoding = client.encode_detailed([text, "short"])
    assert encoding.n_tokens.tolist() == [512, 3]
    assert np.array_equal(encoding.views["embedding"], expected([text, "short"]))


def test_a_row_larger_than_the_server_takes_is_refused_at_once(client: BertClient) -> None:
    started = time.monotonic()
    with pytest.raises(TooLarge, match=r"row 2 has 17\d* bytes, .* at most 16777216"):
        client.encode(["a", "b", "x" * 17_000_000])
    assert time.monotonic() - started < 5 * SECOND
    assert still_answers(client)


def test_the_largest_request_is_the_operators_choice(start_server: Starter) -> None:
    server = start_server("-max_request_bytes", "2000")
    with server.client() as client:
        with pytest.raises(TooLarge, match="at most 2000"):
            client.encode("x" * 2000)
        rows = ["y" * size for size in range(1900)]
        assert np.array_equal(client.encode(rows[-1]), fake_embedding(rows[-1], DIM))
        assert np.array_equal(client.encode(rows), expected(rows))
        assert still_answers(client)
