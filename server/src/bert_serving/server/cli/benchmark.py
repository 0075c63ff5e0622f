"""`bert-serving-benchmark`: read the options, run the experiments, show their tables."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bert_serving.server import exit_codes
from bert_serving.server.benchmark import plots, report
from bert_serving.server.benchmark.comparison import ComparisonConfig
from bert_serving.server.benchmark.experiments import (
    NOT_OURS,
    SECONDS,
    VARIABLES,
    WARM_UP_REPEATS,
    BenchmarkConfig,
    Load,
    Variable,
    chosen_experiments,
    options_under_test,
    unused_options,
)
from bert_serving.server.benchmark.run import run
from bert_serving.server.benchmark.server_process import ServerFailed
from bert_serving.server.benchmark.targets import Target, parse_target
from bert_serving.server.benchmark.words import read_words
from bert_serving.server.cli.comparison import (
    add_comparison,
    run_comparison,
    take_comparison,
    to_comparison_config,
)
from bert_serving.server.cli.options import (
    ENVIRONMENT_PREFIX,
    SettingError,
    get_args_parser,
    to_config,
)
from bert_serving.server.cli.output import printing
from bert_serving.server.config import ServerConfig, option_fields

DESCRIPTION = (
    "Measure what a server delivers: starts bert-serving-start with the options given, puts loads "
    "of different kinds on it, and writes tables and pictures."
)
EPILOG = (
    "All options of bert-serving-start configure the server under test, and are read from the "
    "environment and a TOML file as it does. Example: bert-serving-benchmark -num_client 4 "
    "-client_batch_size 64 -test_num_client 1 8 64 -test_max_seq_len -test_pooling_layer runs all "
    "experiments but two. Online, in requests of one sentence: -client_batch_size 1 -seconds 10 "
    "-test_num_client 1 4 16 32 64 256, with the other experiments left out."
)
OWN = (
    *("num_client", "client_batch_size", "num_repeat", "seconds", "online_peer"),
    *("wait_till_ready", "client_vocab_file"),
)


@printing()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the experiments; returns the exit status."""
    parser = get_benchmark_parser()
    args = parser.parse_args(argv)
    try:
        compared = to_comparison(args, os.environ, sys.argv[1:] if argv is None else argv)
        config = compared or to_benchmark_config(args, os.environ)
        config.output.mkdir(parents=True, exist_ok=True)
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"-output {error.filename}: {error.strerror}")
    if unused := unused_options(vars(args)):
        names = ", ".join(f"-{name}" for name in unused)
        _say(f"not used: {names}: servers take any free ports, and no keys")
    if not args.no_plot and not config.plots:
        _say(plots.ADVICE)
    try:
        if isinstance(config, ComparisonConfig):
            return run_comparison(config)
        return run(config, _say)
    except ServerFailed as error:
        print(f"bert-serving-benchmark: {error}", file=sys.stderr)
        return exit_codes.BOOT_FAILED


def get_benchmark_parser() -> argparse.ArgumentParser:
    """Return the parser: the options of `bert-serving-start`, and the benchmark's own."""
    parser = get_args_parser()
    parser.prog = "bert-serving-benchmark"
    parser.usage = "%(prog)s [options of bert-serving-start] [options of the benchmark]"
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    experiments = parser.add_argument_group(
        "experiments", "values to try one after the other; without values, it is left out"
    )
    for variable in VARIABLES:
        _add_experiment(experiments, variable)
    _add_load(parser.add_argument_group("load", "what is common to all experiments"))
    add_comparison(parser)
    results = parser.add_argument_group("results")
    results.add_argument(
        *_names("output"),
        type=Path,
        default=None,
        metavar="DIR",
        help="folder for tables and pictures (default: benchmark- and the time)",
    )
    results.add_argument(
        *_names("no_plot"), action="store_true", default=False, help="draw no pictures"
    )
    return parser


def to_benchmark_config(
    args: argparse.Namespace, environment: Mapping[str, str]
) -> BenchmarkConfig:
    """Return what was asked for.

    Raises:
        ValueError: a setting cannot be used, or there is nothing to measure.

    """
    given = dict(vars(args))
    tests = {variable.name: given.pop(f"test_{variable.name}") for variable in VARIABLES}
    own = {name: given.pop(name) for name in (*OWN, "output", "no_plot")}
    config, vocab_file = _server_config(given, environment), own["client_vocab_file"]
    experiments = chosen_experiments(tests)
    if not experiments:
        raise SettingError("nothing to measure: every experiment was given without values")
    return BenchmarkConfig(
        experiments=experiments,
        server_options=options_under_test(given, config),
        load=Load(
            num_client=own["num_client"],
            client_batch_size=own["client_batch_size"],
            num_repeat=own["num_repeat"],
            sentence_words=config.max_seq_len,
            seconds=own["seconds"],
        ),
        others=tuple(own["online_peer"]),
        wait_till_ready_s=own["wait_till_ready"],
        words=read_words(vocab_file) if vocab_file is not None else (),
        client_vocab_file=vocab_file,
        environment=_settings_in(environment),
        output=_new_folder(own["output"]),
        plots=plots.can_draw() and not own["no_plot"],
    )


def to_comparison(
    args: argparse.Namespace, environment: Mapping[str, str], argv: Sequence[str]
) -> ComparisonConfig | None:
    """Return the comparison that was asked for; None if experiments were.

    Raises:
        ValueError: a setting cannot be used, or both were.

    """
    given = dict(vars(args))
    compared = take_comparison(given)
    if compared is None:
        return None
    tests = [f"test_{variable.name}" for variable in VARIABLES]
    if asked := [name for name in tests if given.pop(name)]:
        raise SettingError(f"-{asked[0]} and a comparison: give them in a command each")
    own = {name: given.pop(name) for name in (*OWN, "output", "no_plot")}
    config = _server_config(given, environment)
    return to_comparison_config(
        compared,
        config,
        server_options=options_under_test(given, config),
        wait_till_ready_s=own["wait_till_ready"],
        environment=_settings_in(environment),
        argv=argv,
        output=_new_folder(own["output"]),
        draws=not own["no_plot"],
    )


def _add_experiment(group: Any, variable: Variable) -> None:
    values = (
        " ".join(map(str, variable.values)) if variable.values else "each of the model's layers"
    )
    servers = ", with a server for each value" if variable.varies_server else ""
    group.add_argument(
        *_names(f"test_{variable.name}"),
        type=_whole_number(variable.least, variable.most),
        nargs="*",
        default=None,
        metavar="N",
        help=f"{variable.meaning}{servers} (default: {values})",
    )


def _add_load(group: Any) -> None:
    defaults = {name: getattr(Load, name) for name in ("num_client", "client_batch_size")}
    for variable in VARIABLES:
        if variable.name in defaults:
            group.add_argument(
                *_names(variable.name),
                type=_whole_number(variable.least, variable.most),
                default=defaults[variable.name],
                metavar="N",
                help=f"{variable.meaning} (default: {defaults[variable.name]})",
            )
    group.add_argument(
        *_names("num_repeat"),
        type=_whole_number(WARM_UP_REPEATS + 1, 1_000_000),
        default=Load.num_repeat,
        metavar="N",
        help=f"calls of each client; the first {WARM_UP_REPEATS} warm up, and are not measured "
        f"(default: {Load.num_repeat})",
    )
    _add_online(group)
    group.add_argument(
        *_names("wait_till_ready"),
        type=_whole_number(1, 86_400),
        default=300,
        metavar="SECONDS",
        help="how long a server may take to be ready, at most (default: 300)",
    )
    group.add_argument(
        *_names("client_vocab_file"),
        type=Path,
        default=None,
        metavar="FILE",
        help="a text whose words make the sentences (default: common English words, those that "
        "are one token to the model)",
    )


def _add_online(group: Any) -> None:
    group.add_argument(
        *_names("seconds"),
        type=_whole_number(1, 86_400),
        default=None,
        metavar="N",
        help="clients go on for so long, in place of -num_repeat: as latencies want it (mixed and "
        f"overhead always do: default {SECONDS:g})",
    )
    group.add_argument(
        *_names("online_peer"),
        type=_target,
        nargs="+",
        default=[],
        metavar="NAME=ADDRESS",
        help="other servers, already up, that -test_num_client puts the same load on: "
        "infinity=http://HOST:PORT is asked as OpenAI's API, bert-as-service=HOST:PORT:PORT_OUT in "
        "the protocol of 1.10, another bert-serving-start as NAME=HOST:PORT",
    )


def _target(text: str) -> Target:
    try:
        return parse_target(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _names(name: str) -> tuple[str, str]:
    return f"-{name}", f"--{name.replace('_', '-')}"


def _whole_number(least: int, most: int) -> Callable[[str], int]:
    """Return a converter whose error says what is allowed."""

    def convert(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(
                f"{text!r}: expected a whole number, {least} to {most}"
            )
        return number

    return convert


def _server_config(given: Mapping[str, Any], environment: Mapping[str, str]) -> ServerConfig:
    """Return the config that the server under test will have, but for its ports."""
    used = {name: value for name, value in given.items() if name not in NOT_OURS}
    return to_config(argparse.Namespace(**used), environment)


def _settings_in(environment: Mapping[str, str]) -> dict[str, str]:
    names = [ENVIRONMENT_PREFIX + entry.name.upper() for entry in option_fields()]
    return {
        name: environment[name]
        for name in [*names, f"{ENVIRONMENT_PREFIX}CONFIG"]
        if name in environment
    }


def _new_folder(folder: Path | None) -> Path:
    """Return the folder for the results; ValueError if it has others."""
    if folder is None:
        return Path(time.strftime("benchmark-%Y%m%d-%H%M%S"))
    if (folder / report.JSON).exists():
        raise SettingError(f"-output {folder} has results already: give another folder")
    return folder


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
