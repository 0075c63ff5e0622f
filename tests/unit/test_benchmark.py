"""The benchmark without a server: what is measured, what calls amount to, what tables say."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bert_serving.client.view import View
from bert_serving.server.benchmark import report
from bert_serving.server.benchmark.experiments import (
    BULK_ROWS,
    DOORS,
    SECONDS,
    BenchmarkConfig,
    Load,
    Step,
    bulk_beside,
    command_line,
)
from bert_serving.server.benchmark.load import MAX_CONNECTIONS, spread
from bert_serving.server.benchmark.machine import Machine, MatrixProduct
from bert_serving.server.benchmark.measurement import (
    BULK,
    OVER_BARE,
    P99_OVER_ALONE,
    Call,
    Measurement,
    Work,
    failure,
    layers_needed,
    measure,
    rows_per_s_between,
)
from bert_serving.server.benchmark.report import ExperimentResult, Results
from bert_serving.server.benchmark.targets import (
    HTTP,
    LEGACY,
    NATIVE,
    Target,
    parse_target,
)
from bert_serving.server.benchmark.words import (
    COMMON_WORDS,
    FEW_WORDS,
    read_words,
    sentences,
    whole_words,
)
from bert_serving.server.cli.benchmark import get_benchmark_parser, main, to_benchmark_config
from bert_serving.server.cli.options import parse_args

NAMES = [
    *("client_batch_size", "num_client", "pooling_layer", "mixed", "overhead"),
    *("num_worker", "max_batch_size", "max_seq_len"),
]


def asked(*argv: str, **environment: str) -> BenchmarkConfig:
    return to_benchmark_config(get_benchmark_parser().parse_args(argv), environment)


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Return the message that options are refused with."""
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2
    return capsys.readouterr().err


def steps(config: BenchmarkConfig, name: str, num_layers: int = 12) -> list[Step]:
    (experiment,) = [entry for entry in config.experiments if entry.name == name]
    return experiment.steps(config.server_options, config.load, num_layers)


# which experiments


def test_without_options_every_experiment_is_made() -> None:
    config = asked()
    assert {entry.name: entry.values for entry in config.experiments} == {
        "client_batch_size": (1, 16, 256, 4096),
        "num_client": (1, 4, 16, 64),
        "pooling_layer": None,
        "mixed": (1, 8),
        "overhead": (8, 16, 64),
        "num_worker": (1, 2),
        "max_batch_size": (8, 32, 128, 512),
        "max_seq_len": (32, 64, 128, 256),
    }
    assert config.load == Load(num_client=1, client_batch_size=4096, num_repeat=10)


def test_an_experiment_without_values_is_left_out() -> None:
    config = asked("-test_max_seq_len", "-test_pooling_layer", "--test-num-client", "-test_mixed")
    names = [entry.name for entry in config.experiments]
    assert names == ["client_batch_size", "overhead", "num_worker", "max_batch_size"]


@pytest.mark.parametrize("spelling", ["-test_num_client", "--test-num-client"])
def test_values_are_taken_in_both_spellings_and_once_each(spelling: str) -> None:
    (experiment,) = [
        e for e in asked(spelling, "8", "2", "8").experiments if e.name == "num_client"
    ]
    assert experiment.values == (8, 2)


def test_without_values_every_layer_of_the_model_is_tried() -> None:
    loads = [step.load.pooling_layer for step in steps(asked(), "pooling_layer", num_layers=3)]
    assert loads == [-1, -2, -3]


@pytest.mark.parametrize("name", ["client_batch_size", "num_client", "pooling_layer"])
def test_what_clients_do_is_varied_on_one_server(name: str) -> None:
    config = asked("-model_dir", "fake:8")
    made = steps(config, name)
    assert len({step.value for step in made}) == len(made) > 1
    assert all(step.server_options == config.server_options for step in made)
    assert [getattr(step.load, name) for step in made] == [step.value for step in made]


@pytest.mark.parametrize("name", ["num_worker", "max_batch_size", "max_seq_len"])
def test_what_a_server_is_told_is_varied_with_a_server_for_each_value(name: str) -> None:
    config = asked(f"-{name}", "5")
    assert [step.server_options[name] for step in steps(config, name)] == [
        step.value for step in steps(config, name)
    ]
    others = {"num_worker", "max_batch_size", "max_seq_len"} - {name}
    assert not others & steps(config, name)[0].server_options.keys()


def test_sentences_are_as_long_as_the_server_takes_them() -> None:
    assert asked().load.sentence_words is None
    assert asked("-max_seq_len", "40").load.sentence_words == 40
    assert asked(BERT_SERVING_MAX_SEQ_LEN="50").load.sentence_words == 50
    lengths = [step.load.sentence_words for step in steps(asked(), "max_seq_len")]
    assert lengths == [32, 64, 128, 256]


def test_clients_beside_a_bulk_client_ask_for_one_sentence_a_call() -> None:
    config = asked("-test_mixed", "3", "-client_batch_size", "7", "-max_seq_len", "40")
    (step,) = steps(config, "mixed")
    assert step.load == Load(num_client=3, client_batch_size=1, sentence_words=40, seconds=SECONDS)
    assert bulk_beside(step.load) == Load(
        num_client=1, client_batch_size=BULK_ROWS, sentence_words=40, seconds=SECONDS
    )
    assert bulk_beside(replace(step.load, rate=5.0)).rate is None


def test_what_the_way_through_the_server_costs_is_asked_of_one_client_with_one_sentence() -> None:
    config = asked("-test_overhead", "5", "-num_client", "9", "-seconds", "2")
    (step,) = steps(config, "overhead")
    assert step.load == Load(1, 1, sentence_words=5, seconds=2)


def test_a_load_with_a_time_does_not_know_its_rows_before() -> None:
    load = asked("-seconds", "3", "-client_batch_size", "1").load
    assert load.seconds == 3
    assert load.rows is None
    assert replace(load, seconds=None).rows == 10


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("a=http://h:7/v1/", Target("a", HTTP, "h", 7, path="/v1")),
        ("a=http://h", Target("a", HTTP, "h", 80)),
        ("old=h:5:6", Target("old", LEGACY, "h", 5, 6)),
        ("old=[::1]:5:6", Target("old", LEGACY, "::1", 5, 6)),
        ("b=h:5", Target("b", NATIVE, "h", 5)),
    ],
)
def test_a_server_is_named_by_its_address(text: str, target: Target) -> None:
    assert parse_target(text) == target
    assert asked("-online_peer", text).others == (target,)


@pytest.mark.parametrize(
    "text",
    ["h:5", "a=", "=h:5", "a=h", "a=h:0", "a=:5", "a=h:5:6:7", "a=h:x", "a=https://h", "a=[::1"],
)
def test_what_is_no_address_is_refused(capsys: pytest.CaptureFixture[str], text: str) -> None:
    assert "expected NAME=http://HOST:PORT" in refused(capsys, "-online_peer", text)


def test_a_servers_first_options_are_those_of_its_first_value() -> None:
    config = asked("-model_dir", "fake:8")
    for experiment in config.experiments:
        first = experiment.first_options(config.server_options)
        assert first == steps(config, experiment.name)[0].server_options


# the server's options


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["-model_dir", "a model", "-num_worker", "2", "-cpu"],
        ["--max-seq-len", "NONE", "-pooling_layer", "-1", "-2", "-pooling_strategy", "REDUCE_MAX"],
        ["-device_map", "0", "1", "-batch_timeout", "2.5", "-xla", "-fp16"],
    ],
)
def test_the_server_under_test_gets_the_options_given(argv: list[str]) -> None:
    words = command_line(asked(*argv).server_options)
    assert parse_args(words, {}) == replace(parse_args(argv, {}), port=0)


def test_the_server_under_test_takes_free_ports_and_the_benchmarks_ready_file() -> None:
    argv = ["-port", "1234", "-port_out", "1235", "-legacy_port", "99", "-ready_file", "mine"]
    assert asked(*argv).server_options == {"port": 0}
    free = {"port": 0, "legacy_port": 0, "legacy_port_out": 0}
    assert asked(BERT_SERVING_LEGACY_PORT="99").server_options == free


def test_settings_that_stand_elsewhere_are_not_repeated_on_the_command_line() -> None:
    config = asked(BERT_SERVING_NUM_WORKER="3", HOME="/root")
    assert config.server_options == {"port": 0}
    assert config.environment == {"BERT_SERVING_NUM_WORKER": "3"}


# refusals


@pytest.mark.parametrize("name", DOORS)
def test_keys_that_reach_the_server_by_another_way_are_refused(name: str, tmp_path: Path) -> None:
    value, file = "5557" if name == "backend_port" else "keys", tmp_path / "settings.toml"
    with pytest.raises(ValueError, match=f"{name} in the environment or the -config file"):
        asked(**{f"BERT_SERVING_{name.upper()}": value})
    file.write_text(f"{name} = {value if value.isdecimal() else repr(value)}\n")
    for typed in ((), (f"-{name}", value)):
        with pytest.raises(ValueError, match=f"{name} in the environment or the -config file"):
            asked("-config", str(file), *typed)
    assert asked(f"-{name}", value).server_options == {"port": 0}


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["-num_repeat", "2"], "'2': expected a whole number, 3 to"),
        (["-test_num_client", "0"], "'0': expected a whole number, 1 to 1024"),
        (["-test_num_client", "4", "many"], "'many': expected a whole number, 1 to 1024"),
        (["-client_batch_size", "-1"], "'-1': expected a whole number, 1 to"),
        (["-test_max_seq_len", "3"], "'3': expected a whole number, 4 to"),
        (["-wait_till_ready", "0"], "'0': expected a whole number, 1 to"),
        (["-test_nothing", "1"], "unrecognized arguments: -test_nothing"),
        (["-max_seq_len", "2"], "'2': expected a whole number, at least 4, or NONE"),
        (["-client_vocab_file", "/no/such/file"], "/no/such/file cannot be read"),
        ([f"-test_{name}" for name in NAMES], "nothing to measure"),
    ],
)
def test_what_cannot_be_used_is_refused_with_what_can(
    capsys: pytest.CaptureFixture[str], argv: list[str], said: str
) -> None:
    assert said in refused(capsys, *argv)


def test_results_are_never_written_over_others(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / report.JSON).write_text("{}")
    assert "has results already" in refused(capsys, "-output", str(tmp_path))
    (tmp_path / "file").write_text("")
    assert "-output" in refused(capsys, "-output", str(tmp_path / "file" / "folder"))


def test_the_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for name in ("-model_dir", "--num-worker", *(f"-test_{name}" for name in NAMES)):
        assert name in text
    for title in ("experiments:", "load:", "results:"):
        assert title in text


def test_the_command_itself_loads_neither_torch_nor_matplotlib() -> None:
    script = (
        "import sys, bert_serving.server.cli.benchmark\n"
        "print({'torch', 'matplotlib', 'transformers'} & set(sys.modules))"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert run.stdout.strip() == "set()"


# words and clients


def test_sentences_have_the_length_asked_for_and_depend_on_the_seed_alone() -> None:
    made = sentences(COMMON_WORDS, 20, length=7, longest=100, seed=1)
    assert [len(sentence.split()) for sentence in made] == [7] * 20
    assert made == sentences(COMMON_WORDS, 20, length=7, longest=100, seed=1)
    assert made != sentences(COMMON_WORDS, 20, length=7, longest=100, seed=2)


def test_mixed_lengths_are_those_of_sentences_and_end_at_the_longest() -> None:
    made = sentences(COMMON_WORDS, 1000, length=None, longest=40, seed=1)
    lengths = [len(sentence.split()) for sentence in made]
    assert 14 <= statistics.median(lengths) <= 18
    assert max(lengths) == 40
    assert min(lengths) >= 1


def test_words_of_a_file_are_used_once_each(tmp_path: Path) -> None:
    path = tmp_path / "words"
    path.write_text("one two\n two   Drei\n\n", "utf-8")
    assert read_words(path) == ("Drei", "one", "two")
    path.write_text(" \n")
    with pytest.raises(ValueError, match="no words"):
        read_words(path)


def test_words_that_a_model_knows_whole_are_preferred() -> None:
    words = [f"w{number}" for number in range(FEW_WORDS + 5)]
    assert whole_words(words, [4, *[3] * (len(words) - 1)]) == tuple(words[1:])
    assert whole_words(words, [3, *[4] * (len(words) - 1)]) == tuple(words)


@pytest.mark.parametrize(
    ("num_client", "cores"), [(1, 8), (5, 2), (64, 3), (64, 128), (256, 2), (7, 1)]
)
def test_every_client_is_in_one_process_and_none_is_empty(num_client: int, cores: int) -> None:
    processes = spread(num_client, cores)
    connections = [clients for process in processes for clients in process]
    assert sorted(client for clients in connections for client in clients) == [*range(num_client)]
    assert len(processes) <= max(cores // 2, 1)
    assert len(connections) == min(num_client, max(MAX_CONNECTIONS, len(processes)))
    for sizes in ([*map(len, connections)], [*map(len, processes)]):
        assert max(sizes) - min(sizes) <= 1
        assert min(sizes) > 0


# what calls amount to


def calls(durations: Mapping[int, list[float]], rows: int = 10, start_s: float = 0.0) -> list[Call]:
    """Return calls that clients make one after the other, of so many tokens a row."""
    made = []
    for client, own in durations.items():
        now = start_s
        for repeat, duration in enumerate(own):
            made.append(Call(client, repeat, now, now + duration, rows, 4 * rows, 16 * rows))
            now += duration
    return made


def test_a_rate_is_the_median_of_repeats_without_the_first_two() -> None:
    measured = measure(7, calls({0: [9.0, 9.0, 1.0, 1.0, 1.0]}), None)
    assert measured.value == 7
    assert measured.rows == 50
    assert measured.rows_per_s.middle == pytest.approx(10)
    assert measured.client_rows_per_s.middle == pytest.approx(10)
    assert measured.tokens_per_s == pytest.approx(40)
    assert measured.latency_ms is not None
    assert measured.latency_ms.p99 == pytest.approx(1000)


def test_the_rates_of_clients_at_work_together_add_up() -> None:
    measured = measure(1, calls({0: [1.0] * 6, 1: [1.0] * 6, 2: [2.0] * 6}), None)
    assert measured.rows_per_s.middle == pytest.approx(25, rel=0.01)
    assert measured.client_rows_per_s.middle == pytest.approx(25 / 3)
    assert (measured.client_rows_per_s.least, measured.client_rows_per_s.most) == (5, 10)


def test_clients_that_take_turns_are_not_counted_as_if_they_worked_together() -> None:
    first, second = calls({0: [1.0] * 4}), calls({1: [1.0] * 4}, start_s=4.0)
    measured = measure(1, [*first, *second], None)
    assert measured.client_rows_per_s.least == pytest.approx(10)
    assert measured.rows_per_s.most <= 10 + 1e-6


def test_the_spread_of_a_rate_is_told() -> None:
    measured = measure(1, calls({0: [1.0, 1.0, 1.0, 1.0, 4.0, 1.0]}), None)
    assert measured.rows_per_s.least < measured.rows_per_s.middle < measured.rows_per_s.most


def test_calls_that_fail_are_counted_by_type_and_speed_nothing_up() -> None:
    good = calls({0: [1.0] * 6})
    bad = [
        replace(call, rows=0, tokens=0, token_pairs=0, error="Overloaded", message=f"full at {n}")
        for n, call in enumerate(good)
    ]
    measured = measure(1, [*good[:3], bad[3], *good[4:]], None)
    assert measured.errors == {"Overloaded": 1}
    assert measured.messages == {"Overloaded": "full at 3"}
    assert measured.rows == 50
    assert measured.rows_per_s.least == 0
    assert measured.client_rows_per_s.middle == pytest.approx(7.5)
    failed = measure(1, bad, None)
    assert failed.errors == {"Overloaded": 6}
    assert failed.rows_per_s.most == 0
    assert failed.latency_ms is None


def test_a_time_in_which_no_call_was_made_is_told_as_an_error() -> None:
    warm_up = calls({0: [1.0] * 2})
    measured = measure(7, warm_up, None)
    assert measured.errors == {"NothingMeasured": 1}
    assert "-seconds" in measured.messages["NothingMeasured"]
    assert (measured.value, measured.calls, measured.latency_ms) == (7, warm_up, None)


def test_an_error_in_the_warm_up_counts_too() -> None:
    first, *others = calls({0: [1.0] * 4})
    assert measure(1, [replace(first, error="WorkerFailed"), *others], None).errors == {
        "WorkerFailed": 1
    }


@pytest.mark.parametrize(
    ("view", "layers"),
    [
        (View(layers=(-2,)), 5),
        (View(layers=(-1,)), 6),
        (View(layers=(0,)), 0),
        (View(layers=(-7,)), 0),
        (View(layers=(1, -4)), 3),
        (View(layers=(-4,), pooling="pooler"), 6),
    ],
)
def test_the_layers_that_a_view_needs_are_those_up_to_its_deepest(view: View, layers: int) -> None:
    assert layers_needed(view, 6) == layers


def test_the_share_is_useful_work_over_the_best_matrix_product() -> None:
    work = Work(num_layers=5, hidden_size=384, best_gflops=2.0)
    # 10 rows of 4 tokens a second: 24 h² a token, 4 h a pair, five layers
    gflops = 5 * (24 * 384**2 * 40 + 4 * 384 * 160) / 1e9
    measured = measure(1, calls({0: [1.0] * 5}), work)
    assert measured.useful_gflops == pytest.approx(gflops)
    assert measured.share == pytest.approx(gflops / 2)
    assert measure(1, calls({0: [1.0] * 5}), replace(work, best_gflops=None)).share is None


def test_a_rate_between_two_instants_counts_what_is_then_at_work() -> None:
    made = calls({0: [2.0] * 5})
    assert rows_per_s_between(made, 3.0, 5.0).middle == pytest.approx(5)
    assert rows_per_s_between(made, 8.0, 12.0).least == 0


def test_calls_a_second_are_those_that_were_answered() -> None:
    good = calls({0: [0.5] * 6})
    assert measure(1, good, None).calls_per_s == pytest.approx(2)
    bad = [replace(call, rows=0, error="Overloaded") for call in good]
    assert measure(1, bad, None).calls_per_s == 0


# tables


def results(*measurements: Measurement) -> Results:
    experiment = ExperimentResult(
        name="num_client",
        load="4 calls each",
        model={
            "name": "a/model", "architecture": "bert", "num_layers": 6, "hidden_size": 384,
            "dtype": "float32", "device": "cpu",
        },
        workers=2,
        settings={"num_worker": 2},
        matrix_product=MatrixProduct("float32", "cpu", 440.0),
        measurements=list(measurements),
        picture="num_client.png",
    )  # fmt: skip
    return Results(
        date="2025-11-24",
        machine=Machine("a processor", 2, 16.0, "Linux"),
        versions={"python": "3.11"},
        options={"server": "-model_dir a/model"},
        environment={"BERT_SERVING_CPU": "1"},
        experiments=[experiment],
    )


GOOD = measure(4, calls({0: [1.0] * 4, 1: [1.5] * 4}, rows=4096), Work(5, 384, 440.0))
BAD = failure(64, RuntimeError("no memory | left"))


def head(*measurements: Measurement, rows: int = 1000) -> list[str]:
    found = results(*measurements)
    return report.experiment_head(
        found.experiments[0], varies_server=False, rows=rows, rows_per_s=found.best_rows_per_s
    )


@pytest.mark.parametrize(
    ("rows", "time"), [(1000, "10 s"), (36_000, "6 min"), (2_000_000, "5 h 33 min")]
)
def test_how_long_an_experiment_takes_is_foretold_by_what_was_reached(rows: int, time: str) -> None:
    assert "about" not in head(rows=rows)[0]
    reached = measure(1, calls({0: [1.0] * 4}, rows=100), None)
    assert head(reached, BAD, rows=rows)[0].endswith(f"{rows:,} sentences, about {time}")


def test_a_line_of_the_table_stands_below_its_titles() -> None:
    *_, titles = head()
    for measurement in (GOOD, BAD):
        line = report.table_line(results().experiments[0], measurement)
        place = titles.index("tokens/s") + len("tokens/s")
        assert line[place - 1] != " "
        assert line[place] == " "
        assert line.split()[0] == str(measurement.value)


def test_the_report_has_a_row_a_value_and_what_its_errors_say() -> None:
    text = report.to_markdown(results(GOOD, BAD))
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 4
    assert {row.replace("\\|", "").count("|") for row in rows} == {14}
    assert rows[2].startswith("| 4 |") and "32,768" in rows[2]
    assert rows[3].startswith("| 64 |") and "1 RuntimeError" in rows[3]
    assert "- 64: RuntimeError: no memory | left" in text
    for fact in ("a processor, 2 cores", "python 3.11", "-model_dir a/model", "BERT_SERVING_CPU=1"):
        assert fact in text
    assert "best matrix product 440 GFLOP/s" in text
    assert "![num_client](num_client.png)" in text


def test_what_only_one_kind_of_experiment_finds_stands_in_its_table() -> None:
    found = results(
        replace(GOOD, label="closed, beside bulk", extra={P99_OVER_ALONE: 1.234, BULK: 5678.0})
    ).experiments[0]
    text = report.section(replace(found, name="mixed", label="load"))
    assert "p99 / alone" in text and "| 1.23 |" in text
    assert "| closed, beside bulk |" in text and "| 5,678 |" in text
    text = report.section(
        replace(found, name="overhead", measurements=[replace(GOOD, extra={OVER_BARE: 1.5})])
    )
    assert "p50 / model's" in text and "| 1.50 |" in text


def test_a_report_says_which_cores_clients_and_server_took() -> None:
    busy = replace(GOOD, client_cores=0.25, server_cores=1.5)
    assert "| 0.25 + 1.50 |" in report.to_markdown(results(busy))
    assert "| 0.25 + - |" in report.to_markdown(results(replace(busy, server_cores=None)))


def test_a_report_that_is_not_complete_says_so() -> None:
    unfinished = results(GOOD)
    assert "not finished" in report.to_markdown(unfinished)
    unfinished.ended = ""
    assert "not finished" not in report.to_markdown(unfinished)


def test_json_has_every_call() -> None:
    written: dict[str, Any] = json.loads(json.dumps(results(GOOD, BAD).to_dict()))
    good, bad = written["experiments"][0]["measurements"]
    assert [Call(**call) for call in good["calls"]] == list(GOOD.calls)
    assert good["rows"] == sum(call["rows"] for call in good["calls"])
    assert bad["errors"] == {"RuntimeError": 1} and bad["calls"] == []


def test_calls_beyond_count_are_left_out_of_json() -> None:
    many = measure(1, calls({0: [1e-3] * (report.MOST_CALLS + 1)}), None)
    written = results(many).to_dict()["experiments"][0]["measurements"][0]
    assert written["calls"] == [] and written["rows"] == many.rows


def test_a_matrix_product_that_was_not_measured_says_why() -> None:
    assert "no memory" in str(MatrixProduct("float32", "cuda:0", reason="no memory"))
