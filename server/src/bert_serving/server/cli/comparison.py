"""The options of `bert-serving-benchmark` that compare our server with others, and running it."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bert_serving.server.benchmark import comparison_report, plots
from bert_serving.server.benchmark.comparison import KINDS, ComparisonConfig, model_directory
from bert_serving.server.benchmark.comparison_run import compare
from bert_serving.server.benchmark.document import check_sections
from bert_serving.server.benchmark.peers.catalogue import (
    NAMES,
    PeerChoice,
    default_choices,
    parse_peer,
)
from bert_serving.server.benchmark.run import SIGNALLED, Interrupted, signals
from bert_serving.server.config import DTYPES, ServerConfig

LENGTHS = (20, 40, 80, 160, 320)
COMPARED_DTYPES = ("float32", "bfloat16")
ROUNDS, SECONDS = 5, 3.0
CHOICES = ("peer", "compare")
"""Either one asks for a comparison."""

SETTINGS = ("compare_dtype", "compare_length", "compare_rounds", "compare_seconds", "document")


def add_comparison(parser: argparse.ArgumentParser) -> None:
    """Add the options; what is not given is not in the namespace."""
    group = parser.add_argument_group(
        "comparison",
        "in place of experiments: our server beside others, in turn in one run, on the CPU",
    )
    group.add_argument(
        "-peer",
        "--peer",
        type=_peer,
        nargs="+",
        metavar="NAME[=WHERE]",
        help=f"compare with these: {', '.join(NAMES)}. WHERE is the Python interpreter that has "
        "it, or the folder of its venv (default: this one); for bert-as-service the address of "
        "its server, HOST:PORT:PORT_OUT (default: all that are installed here)",
    )
    group.add_argument(
        "-compare",
        "--compare",
        nargs="+",
        choices=KINDS,
        help="bulk: short sentences of mixed lengths; lengths: rows of equal length (default: "
        "both)",
    )
    group.add_argument(
        "-compare_dtype",
        "--compare-dtype",
        nargs="+",
        choices=[dtype for dtype in DTYPES if dtype != "auto"],
        help=f"what our servers compute in, one each (default: {' '.join(COMPARED_DTYPES)}, where "
        "this machine serves it)",
    )
    group.add_argument(
        "-compare_length",
        "--compare-length",
        type=_number(4, 1_000_000),
        nargs="+",
        metavar="N",
        help=f"tokens of rows of equal length (default: {' '.join(map(str, LENGTHS))})",
    )
    group.add_argument(
        "-compare_rounds",
        "--compare-rounds",
        type=_number(1, 1_000),
        metavar="N",
        help=f"measurements of each (default: {ROUNDS})",
    )
    group.add_argument(
        "-compare_seconds",
        "--compare-seconds",
        type=_seconds,
        metavar="SECONDS",
        help=f"about how long each measurement takes (default: {SECONDS:g})",
    )
    group.add_argument(
        "-document",
        "--document",
        type=Path,
        metavar="FILE",
        help="a Markdown file to write each comparison into as a section of its own, with its "
        "picture beside it; other sections stay, so that runs of several models make one document",
    )


def take_comparison(given: dict[str, Any]) -> dict[str, Any] | None:
    """Take the options of a comparison out of those given; None if none is asked for.

    Raises:
        ValueError: some only make sense together with others.

    """
    own = {name: given.pop(name) for name in (*CHOICES, *SETTINGS) if name in given}
    if any(name in own for name in CHOICES):
        return own
    if own:
        raise ValueError(f"-{next(iter(own))} belongs to a comparison: give -peer or -compare too")
    return None


def to_comparison_config(
    own: Mapping[str, Any],
    config: ServerConfig,
    *,
    server_options: Mapping[str, Any],
    wait_till_ready_s: float,
    environment: Mapping[str, str],
    argv: Sequence[str],
    output: Path,
    draws: bool,
) -> ComparisonConfig:
    """Return what was asked for.

    Args:
        own: the options of the comparison that were given.
        config: of the servers under test, but for what a comparison decides.
        server_options: what stands on their command line.
        wait_till_ready_s: how long one may take to start.
        environment: the settings that stand in the environment.
        argv: what was typed, without the command's name.
        output: the folder for the results.
        draws: whether pictures are wanted.

    Raises:
        ValueError: a setting cannot be used.

    """
    for name in ("dtype", "fp16"):
        if name in server_options:
            raise ValueError(f"-{name}: a comparison takes -compare_dtype in its place")
    if (output / comparison_report.JSON).exists():
        raise ValueError(f"-output {output} has results already: give another folder")
    document: Path | None = own.get("document")
    if document is not None:
        _check_document(document)
    return ComparisonConfig(
        kinds=tuple(dict.fromkeys(own.get("compare", KINDS))),
        peers=tuple(own.get("peer", default_choices())),
        # the most exact first: the others are held against what it gives
        dtypes=tuple(sorted(set(own.get("compare_dtype", COMPARED_DTYPES)), key=DTYPES.index)),
        dtypes_are_chosen="compare_dtype" in own,
        lengths=tuple(dict.fromkeys(own.get("compare_length", LENGTHS))),
        rounds=own.get("compare_rounds", ROUNDS),
        seconds=own.get("compare_seconds", SECONDS),
        model_dir=model_directory(config.model_dir),
        server_options=server_options,
        wait_till_ready_s=wait_till_ready_s,
        environment=environment,
        command=shlex.join(["bert-serving-benchmark", *map(_portable, argv)]),
        output=output,
        plots=draws and plots.can_draw(),
        document=document,
    )


def run_comparison(config: ComparisonConfig) -> int:
    """Make the comparison; returns the exit status. ServerFailed if a server did not start."""
    results = config.output / comparison_report.MARKDOWN
    try:
        with signals() as check:
            status = compare(config, _say, check)
    except Interrupted as interruption:
        _say(f"\n{interruption}: {config.output} has the results until then")
        return SIGNALLED + interruption.number
    _say(f"\nresults: {results}")
    return status


def _check_document(document: Path) -> None:
    """Raise ValueError if no section can be put into a document: better now than in the end."""
    if not document.parent.is_dir():
        raise ValueError(f"-document {document}: there is no folder {document.parent}")
    if not os.access(document.parent, os.W_OK):
        raise ValueError(f"-document {document}: nothing can be written in {document.parent}")
    try:
        check_sections(document.read_text("utf-8") if document.exists() else "")
    except OSError as error:
        raise ValueError(f"-document {document}: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"-document {document}: {error}") from None


def _portable(word: str) -> str:
    """Return what stands for a word of the command line on other machines: names, no folders."""
    name, equals, where = word.rpartition("=")
    if not where.startswith(("/", "~")):
        return word
    is_peers = name.rpartition("=")[2] in NAMES
    return f"{name}{equals}{'VENV' if is_peers else Path(where).name}"


def _peer(text: str) -> PeerChoice:
    try:
        return parse_peer(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _number(least: int, most: int) -> Any:
    def convert(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(
                f"{text!r}: expected a whole number, {least} to {most}"
            )
        return int(text)

    return convert


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r}: expected seconds above 0, at most 3600")
    return seconds


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
