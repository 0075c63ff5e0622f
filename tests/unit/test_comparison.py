"""Comparing with others, without any of them: what is measured, and what follows from it."""

from __future__ import annotations

import ast
import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bert_serving.server.benchmark.comparison import (
    BULK,
    LENGTHS,
    MOST_ROWS,
    ComparisonConfig,
    Workload,
    mixed_word_counts,
    workloads,
)
from bert_serving.server.benchmark.comparison_report import (
    round_line,
    to_markdown,
    workload_lines,
)
from bert_serving.server.benchmark.comparison_results import (
    Comparison,
    Entry,
    Ratio,
    WorkloadResult,
    least_cosine,
    why_excluded,
)
from bert_serving.server.benchmark.document import file_name, put_section
from bert_serving.server.benchmark.machine import Machine, MatrixProduct
from bert_serving.server.benchmark.measurement import Spread
from bert_serving.server.benchmark.peers.catalogue import (
    PEERS,
    PeerChoice,
    parse_peer,
    what_is_missing,
)
from bert_serving.server.benchmark.peers.programs import bert_as_service_peer
from bert_serving.server.benchmark.peers.programs.batching import sorted_batches
from bert_serving.server.benchmark.peers.programs.tuning import fastest
from bert_serving.server.benchmark.words import COMMON_WORDS
from bert_serving.server.cli.benchmark import get_benchmark_parser, main, to_comparison


def entry(name: str, *seconds: float, layers: int = 12, rows: int = 60, **more: object) -> Entry:
    options = {"dtype": "float32", "is_ours": False, "cosine": 1.0, **more}
    return Entry(
        name=name,
        version="1.0",
        layers=layers,
        rows=rows,
        seconds=list(seconds),
        **options,  # type: ignore[arg-type]
    )


def ours(*seconds: float, **more: object) -> Entry:
    return entry("bert-serving", *seconds, is_ours=True, **more)  # type: ignore[arg-type]


def result(*entries: Entry, name: str = "mixed lengths") -> WorkloadResult:
    return WorkloadResult(name=name, tokens=16.0, layer_gflop=0.5, entries=list(entries))


def comparison(*results: WorkloadResult, kind: str = BULK) -> Comparison:
    return Comparison(
        kind=kind,
        date="today",
        machine=Machine("a processor", 2, 8.0, "a system"),
        versions={"python": "3"},
        model="model (12 layers of 768)",
        num_layers=12,
        command="bert-serving-benchmark -compare bulk",
        environment={},
        rounds=3,
        seconds=2.0,
        products={"float32": MatrixProduct("float32", "cpu", 400.0)},
        workloads=list(results),
        ended="",
    )


# texts


@pytest.mark.parametrize("kind", [BULK, LENGTHS])
def test_every_block_of_a_workload_has_the_same_lengths_and_other_words(kind: str) -> None:
    for workload in workloads(kind, [20, 40], 512):
        texts = workload.texts(COMMON_WORDS, 3 * workload.block)
        blocks = [texts[i : i + workload.block] for i in range(0, len(texts), workload.block)]
        counts = [Counter(len(text.split()) for text in block) for block in blocks]
        assert counts[0] == counts[1] == counts[2] == Counter(workload.word_counts)
        assert blocks[0] != blocks[1]


def test_fewer_texts_are_the_beginning_of_more() -> None:
    (workload,) = workloads(BULK, [], 512)
    assert workload.texts(COMMON_WORDS, 100) == workload.texts(COMMON_WORDS, 500)[:100]


def test_rows_of_equal_length_have_as_many_tokens_with_the_special_ones() -> None:
    made = workloads(LENGTHS, [20, 320], 512)
    assert [workload.name for workload in made] == ["20 tokens", "320 tokens"]
    assert [set(workload.word_counts) for workload in made] == [{18}, {318}]


def test_lengths_that_the_model_does_not_take_are_left_out() -> None:
    assert [workload.name for workload in workloads(LENGTHS, [20, 128, 129], 128)] == [
        "20 tokens",
        "128 tokens",
    ]


def test_mixed_lengths_are_those_of_short_sentences() -> None:
    counts = mixed_word_counts(64, 512)
    assert 13 < np.mean(counts) < 15 and np.median(counts) == 12
    assert min(counts) >= 2 and max(mixed_word_counts(64, 32)) == 30


def test_a_contender_gets_whole_blocks_for_the_time_it_takes() -> None:
    workload = Workload("w", (5,) * 64)
    assert workload.rows(1000.0, 3.0) == 3008
    assert workload.rows(1.0, 3.0) == 64
    assert workload.rows(1e9, 3.0) == MOST_ROWS


# ratios


def test_a_ratio_is_the_median_over_rounds() -> None:
    fast, slow = ours(1.0, 1.0, 2.0), entry("peer", 2.0, 3.0, 4.0)
    ratio = result(fast, slow).against_best(fast)
    assert ratio == Ratio(slow, Spread(2.0, 2.0, 3.0))


def test_the_best_peer_is_that_of_the_best_median() -> None:
    fast = ours(1.0, 1.0, 1.0)
    lucky, steady = entry("lucky", 0.5, 4.0, 4.0), entry("steady", 2.0, 2.0, 2.0)
    found = result(fast, lucky, steady).against_best(fast)
    assert found is not None and found.over is steady


def test_rates_are_compared_and_not_seconds() -> None:
    fast, few = ours(2.0, rows=600), entry("peer", 1.0, rows=60)
    found = result(fast, few).against_best(fast)
    assert found is not None and found.ratio.middle == 5.0


def test_only_peers_of_a_type_or_of_equal_layers_are_asked_for() -> None:
    fast = ours(1.0, layers=11)
    half = entry("half", 1.0, dtype="bfloat16")
    full, equal = entry("full", 2.0), entry("equal", 4.0, layers=11)
    made = result(fast, half, full, equal)
    asked = [
        made.against_best(fast),
        made.against_best(fast, dtype="float32"),
        made.against_best(fast, equal_layers=True),
    ]
    assert [ratio.over.name for ratio in asked if ratio] == ["half", "full", "equal"]
    assert made.against_best(fast, dtype="bfloat16", equal_layers=True) is None


def test_who_computes_something_else_is_not_compared_with() -> None:
    fast, wrong = ours(1.0), entry("wrong", 0.5, excluded="other vectors")
    assert result(fast, wrong).against_best(fast) is None


def test_who_of_ours_computes_something_else_is_not_compared() -> None:
    right, wrong = ours(1.0), ours(0.5, dtype="int8", excluded="other vectors")
    made = result(right, wrong, entry("peer", 2.0))
    assert made.ours == [right]
    (ratios,) = comparison(made).to_dict()["workloads"][0]["ratios"]
    assert ratios["ours"] == "bert-serving, float32, 12 of 12 layers"


def test_useful_flops_are_of_the_layers_that_are_computed() -> None:
    fast = ours(1.0, layers=11)
    made = result(fast)
    assert made.useful_gflops(fast) == 60 * 0.5 * 11
    assert comparison(made).share(made, fast) == pytest.approx(330 / 400)
    assert comparison(made).share(made, replace(fast, dtype="bfloat16")) is None


def test_the_best_matrix_product_of_a_run_is_kept() -> None:
    made = comparison()
    made.keep_best([MatrixProduct("float32", "cpu", 300.0), MatrixProduct("int8", "cpu", 9.0)])
    made.keep_best([MatrixProduct("int8", "cpu", reason="no memory")])
    assert {name: product.gflops for name, product in made.products.items()} == {
        "float32": 400.0,
        "int8": 9.0,
    }


# whether it is the same work


def test_the_least_cosine_of_all_rows_counts() -> None:
    reference = [[1.0, 0.0], [0.0, 2.0]]
    assert least_cosine([[3.0, 0.0], [0.0, 1.0]], reference) == 1.0
    assert least_cosine([[3.0, 0.0], [1.0, 1.0]], reference) == pytest.approx(2**-0.5)
    assert least_cosine([[3.0, 0.0, 0.0], [0.0, 1.0, 0.0]], reference) == -1.0
    assert least_cosine([[3.0, 0.0]], reference) == -1.0


def excluded(
    entry: Entry, *, reference: str = "float32", max_tokens: int | None = None, longest: int = 50
) -> str:
    return why_excluded(entry, reference=reference, max_tokens=max_tokens, longest=longest)


@pytest.mark.parametrize(
    ("cosine", "dtype", "is_right"),
    [
        (1.0, "float32", True),
        (0.9995, "float32", False),
        (0.9995, "bfloat16", True),
        (0.98, "bfloat16", False),
        (float("nan"), "float32", False),
        (None, "float32", True),
    ],
)
def test_a_contender_of_other_vectors_is_excluded(
    cosine: float | None, dtype: str, is_right: bool
) -> None:
    assert (excluded(entry("p", cosine=cosine, dtype=dtype)) == "") == is_right


def test_an_exact_contender_is_as_near_to_ours_as_ours_is_exact() -> None:
    exact = entry("p", cosine=0.995, dtype="float32")
    assert excluded(exact, reference="bfloat16") == ""
    assert excluded(replace(exact, cosine=0.98), reference="int8") != ""


def test_a_contender_that_cuts_rows_is_excluded_where_they_are_longer() -> None:
    assert excluded(entry("p"), max_tokens=25, longest=25) == ""
    assert "25 tokens" in excluded(entry("p"), max_tokens=25, longest=26)


# tables


def test_the_report_says_of_everyone_which_layers_are_computed() -> None:
    fast, slow = ours(1.0, layers=11), entry("peer", 2.0)
    wrong = entry("wrong", 0.5, excluded="other vectors than ours")
    text = to_markdown(comparison(result(fast, slow, wrong)))
    assert "| bert-serving, float32, 11 of 12 layers | 60.0 |" in text
    assert "| peer, float32, 12 of 12 layers | 30.0 |" in text
    assert "not compared: other vectors than ours" in text
    assert "2.00 (2.00 to 2.00) over peer, float32, 12 of 12 layers" in text
    assert "16.0 tokens a sentence" in text and "a processor, 2 cores" in text
    assert "best matrix product 400 GFLOP/s" in text


def test_several_workloads_stand_side_by_side() -> None:
    short = result(ours(1.0), entry("peer", 2.0), name="20 tokens")
    long = result(ours(4.0), entry("other", 2.0), name="40 tokens")
    text = to_markdown(comparison(short, long, kind=LENGTHS))
    assert "| contender | 20 tokens | 40 tokens |" in text
    assert "| peer, float32, 12 of 12 layers | 30.0 | - |" in text
    assert "| 2.00 (peer, float32) | 0.50 (other, float32) |" in text


def test_what_is_not_complete_says_so() -> None:
    made = comparison(result(ours(1.0)))
    made.ended, made.left_out = "not finished", ["openvino is left out: type this"]
    assert "**not finished**" in to_markdown(made)
    assert "- openvino is left out: type this" in to_markdown(made)


def test_a_contender_without_a_measurement_has_no_rate_and_breaks_no_table() -> None:
    made = comparison(result(ours(1.0), entry("failed")))
    lines = workload_lines(made, made.workloads[0])
    assert any("failed" in line for line in lines)
    assert "failed" in to_markdown(made)


def test_a_round_shows_nothing_of_who_did_not_come_so_far() -> None:
    made = result(ours(1.0, 2.0), entry("failed", 1.0), entry("never"))
    assert round_line(1, made) == "  round 1: 60, 60, - sentences/s"
    assert round_line(2, made) == "  round 2: 30, -, - sentences/s"


def test_numbers_and_ratios_are_written_as_json() -> None:
    made = comparison(result(ours(1.0), entry("peer", 2.0), name="20 tokens"))
    (workload,) = json.loads(json.dumps(made.to_dict()))["workloads"]
    assert [own["rows_per_s"]["middle"] for own in workload["entries"]] == [60.0, 30.0]
    (ratios,) = workload["ratios"]
    assert ratios["best float32 peer"]["middle"] == 2.0
    assert ratios["best peer of any type"]["over"] == "peer, float32, 12 of 12 layers"


# the document


def test_a_section_is_added_at_the_end_and_replaced_in_its_place() -> None:
    document = put_section("", "one", "One", "first")
    document = put_section(document, "two", "Two", "second")
    document = document.replace("## Two", "Written by hand.\n\n## Two")
    again = put_section(document, "one", "One", r"\1 third")
    assert again.startswith("# Benchmarks\n")
    assert again.index("third") < again.index("second") and "first" not in again
    assert again.count("## One") == 1
    assert put_section(again, "one", "One", r"\1 third") == again


def test_text_around_sections_stays() -> None:
    document = f"# Mine\n\nWords.\n\n{put_section('x', 'a', 'A', 'old')}\n\nMore words.\n"
    again = put_section(document, "a", "A", "new")
    assert "Words." in again and "More words." in again and "old" not in again


def test_a_name_cannot_end_the_comment_that_it_stands_in() -> None:
    document = put_section("", "a --> b\nc", "A", "old")
    assert put_section(document, "a --> b\nc", "A", "new").count("<!-- begin") == 1


@pytest.mark.parametrize("lost", ["a", "b"])
def test_text_behind_a_section_without_its_end_is_not_touched(lost: str) -> None:
    document = put_section(put_section("", "a", "A", "old"), "b", "B", "old")
    damaged = document.replace(f"<!-- end: {lost} -->", "") + "By hand.\n"
    for name in ("a", "b", "c"):
        with pytest.raises(ValueError, match=f"the section '{lost}' has no end"):
            put_section(damaged, name, "A", "new")


def test_an_end_without_its_section_is_anybodys_text() -> None:
    document = put_section("", "a", "A", "old").replace("<!-- begin: a -->", "")
    again = put_section(document, "a", "A", "new")
    assert "old" in again and "new" in again


def test_a_sections_files_have_plain_names() -> None:
    assert file_name("Bulk, mixed: BERT base (12/768)") == "bulk-mixed-bert-base-12-768"


# peers


@pytest.mark.parametrize("name", [peer.name for peer in PEERS if peer.modules])
def test_a_peer_is_looked_for_here_or_where_it_is_said_to_be(name: str, tmp_path: Path) -> None:
    assert parse_peer(name).python == sys.executable
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.touch()
    assert parse_peer(f"{name}={tmp_path}").python == str(python)
    assert parse_peer(f"{name}={python}").python == str(python)


def test_bert_as_service_is_known_by_its_address() -> None:
    choice = parse_peer("bert-as-service=[::1]:5555:5556")
    assert choice.address == "[::1]:5555:5556"
    assert what_is_missing(choice) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bert", "sentence-transformers"),
        ("onnxruntime=/nowhere", "a Python interpreter"),
        ("bert-as-service", "HOST:PORT:PORT_OUT"),
        ("bert-as-service=host:5555", "HOST:PORT:PORT_OUT"),
        ("bert-as-service=host:in:out", "HOST:PORT:PORT_OUT"),
    ],
)
def test_what_no_peer_is_meant_by_is_refused_with_what_can_be(text: str, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        parse_peer(text)


def test_a_peer_that_is_not_installed_says_what_to_type() -> None:
    peer = replace(PEERS[0], name="other", modules=("json", "no_such_module"), packages="it")
    reason = what_is_missing(PeerChoice(peer, sys.executable))
    assert reason is not None and "no_such_module" in reason and "json" not in reason
    assert "pip install it" in reason and "-peer other=VENV" in reason


def test_every_peer_has_a_program_that_opens_it() -> None:
    folder = Path(sys.modules[fastest.__module__].__file__ or "").parent
    for peer in PEERS:
        tree = ast.parse((folder / f"{peer.program}.py").read_text("utf-8"))
        functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
        assert "open_peer" in functions


@pytest.mark.parametrize(
    ("settings", "layers"),
    [
        ({"pooling_layer": [11]}, 12),
        ({"pooling_layer": [0, -2]}, 11),
        ({"pooling_layer": [11], "native_version": "2.0.0"}, 11),
        ({"pooling_layer": [0, -12], "native_version": "2.0.0"}, 1),
    ],
)
def test_an_original_server_counts_its_layers_without_the_embeddings(
    settings: dict[str, Any], layers: int, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 12}))
    assert bert_as_service_peer._layers(settings, str(tmp_path)) == layers


# what peers share


class Clock:
    """Time that passes only in work."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_fastest_setting_is_chosen_by_its_better_time() -> None:
    clock, times = Clock(), {"a": [3.0, 3.0], "b": [9.0, 1.0], "c": [2.0, 2.0]}

    def work(setting: str) -> None:
        clock.now += times[setting].pop(0)

    assert fastest(["a", "b", "c"], work, 100.0, clock) == "b"


def test_no_other_setting_is_begun_when_the_time_is_over() -> None:
    clock, tried = Clock(), []

    def work(setting: int) -> None:
        tried.append(setting)
        clock.now += setting

    assert fastest([5, 4, 1], work, 9.0, clock) == 5
    assert tried == [5, 5]


def test_sorted_batches_hold_every_row_once_padded_to_their_longest() -> None:
    ids = [[7] * length for length in (3, 9, 1, 9, 4)]
    batches = list(sorted_batches(ids, 2))
    assert [batch.input_ids.shape for batch in batches] == [(2, 9), (2, 4), (1, 1)]
    assert sorted(row for batch in batches for row in batch.rows) == [0, 1, 2, 3, 4]
    for batch in batches:
        for row, tokens, mask in zip(
            batch.rows, batch.input_ids, batch.attention_mask, strict=True
        ):
            assert mask.sum() == len(ids[row]) == np.count_nonzero(tokens)
            assert (tokens[mask == 1] == 7).all()


# the command


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    return tmp_path


def asked(*argv: str) -> ComparisonConfig | None:
    return to_comparison(get_benchmark_parser().parse_args(argv), {}, argv)


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_a_comparison_is_made_when_it_is_asked_for(model_dir: Path) -> None:
    assert asked("-model_dir", str(model_dir)) is None
    config = asked("-model_dir", str(model_dir), "-compare", "bulk", "-num_worker", "2")
    assert config is not None
    assert config.kinds == (BULK,) and config.dtypes == ("float32", "bfloat16")
    assert not config.dtypes_are_chosen
    assert config.model_dir == model_dir
    assert config.server_options["num_worker"] == 2 and config.server_options["port"] == 0
    assert not [name for name in config.server_options if name.startswith("compare")]
    assert {choice.peer.name for choice in config.peers} == {p.name for p in PEERS if p.modules}


def test_the_command_is_told_without_the_folders_of_this_machine(model_dir: Path) -> None:
    python = f"transformers={sys.executable}"
    config = asked("-model_dir", str(model_dir), "-peer", python, "-compare", "bulk")
    assert config is not None
    assert config.command == (
        f"bert-serving-benchmark -model_dir {model_dir.name} -peer transformers=VENV -compare bulk"
    )


def test_an_option_and_its_value_in_one_word_are_told_alike(model_dir: Path) -> None:
    argv = (f"--model-dir={model_dir}", f"--peer=transformers={sys.executable}", "-compare", "bulk")
    config = asked(*argv)
    assert config is not None
    assert config.command == (
        f"bert-serving-benchmark --model-dir={model_dir.name} --peer=transformers=VENV "
        "-compare bulk"
    )


def test_types_that_were_typed_are_chosen_the_most_exact_first(model_dir: Path) -> None:
    config = asked(
        "-model_dir", str(model_dir), "-compare", "bulk", "-compare_dtype", "int8", "float32"
    )
    assert config is not None
    assert config.dtypes == ("float32", "int8") and config.dtypes_are_chosen


def test_peers_alone_ask_for_both_kinds(model_dir: Path) -> None:
    config = asked("--model-dir", str(model_dir), "--peer", "transformers", "--compare-length", "8")
    assert config is not None
    assert config.kinds == (BULK, LENGTHS) and config.lengths == (8,)
    assert [choice.peer.name for choice in config.peers] == ["transformers"]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["-compare_rounds", "3"], "-peer or -compare"),
        (["-compare", "bulk", "-test_num_client", "1"], "a command each"),
        (["-compare", "bulk", "-dtype", "float32"], "-compare_dtype"),
        (["-compare", "bulk", "-document", "no/such/folder/x.md"], "there is no folder"),
        (["-peer", "word2vec"], "no known peer"),
        (["-compare", "bulk", "-model_dir", "fake:8"], "config.json"),
        (["-compare", "bulk", "-compare_seconds", "0"], "above 0"),
    ],
)
def test_what_a_comparison_cannot_use_is_refused(
    capsys: pytest.CaptureFixture[str], argv: list[str], expected: str
) -> None:
    assert expected in refused(capsys, *argv)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "Is a directory"),
        (b"\xff", "can't decode"),
        (b"<!-- begin: a -->", "the section 'a' has no end"),
    ],
)
def test_a_document_that_cannot_be_written_into_is_refused(
    capsys: pytest.CaptureFixture[str], model_dir: Path, content: bytes | None, expected: str
) -> None:
    document = model_dir / "document.md"
    if content is None:
        document.mkdir()
    else:
        document.write_bytes(content)
    argv = ("-model_dir", str(model_dir), "-compare", "bulk", "-document", str(document))
    said = refused(capsys, *argv)
    assert f"-document {document}: " in said and expected in said


def test_an_output_folder_with_a_comparison_in_it_is_refused(
    capsys: pytest.CaptureFixture[str], model_dir: Path
) -> None:
    (model_dir / "comparison.json").write_text("[]")
    argv = ("-model_dir", str(model_dir), "-compare", "bulk", "-output", str(model_dir))
    assert "has results already" in refused(capsys, *argv)
