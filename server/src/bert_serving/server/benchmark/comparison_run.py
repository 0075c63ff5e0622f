"""Makes comparisons: opens all contenders, and measures them in turn, round by round.

All are there from the beginning, so that none is measured on another machine than the rest;
who is not measured waits in a read and burns nothing. What was found is written after every
workload, so that an end of any kind loses no more than the one at hand.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bert_serving.server import exit_codes

from . import comparison_plot, comparison_report
from .comparison import ComparisonConfig, Workload, workloads
from .comparison_results import (
    Comparison,
    Entry,
    WorkloadResult,
    least_cosine,
    why_excluded,
)
from .contenders import Contender, Ours, OurServer, PeerContender
from .document import file_name, put_section
from .machine import Machine, best_matrix_product, num_cores, versions
from .measurement import Work
from .peers.catalogue import PeerChoice, what_is_missing
from .peers.process import PeerFailed, PeerProcess
from .peers.programs.lines import Options
from .run import Interrupted
from .server_process import ServerFailed, ServerProcess
from .words import COMMON_WORDS, whole_words

SERVER_LOG, PEER_LOG = "server.log", "peers.log"
CHECKED_ROWS = 16

# times the duration of a measurement: the texts that settings are tried on, and all the trying
TRIED, TUNING = 0.5, 6.0
NOT_FINISHED = "not finished"


@dataclass(frozen=True)
class Measured:
    """A contender, and what it gave at the workload at hand."""

    contender: Contender
    entry: Entry
    texts: Sequence[str]


def compare(config: ComparisonConfig, say: Callable[[str], None], check: Callable[[], None]) -> int:
    """Make all comparisons; returns the exit status.

    Args:
        config: what to compare.
        say: shows a line to the user.
        check: called often; what it raises ends the comparison, and what there is is kept.

    Raises:
        ServerFailed: a server of ours did not start.

    """
    with ExitStack() as stack:
        return ComparisonRun(config, say, check, stack).run()


class ComparisonRun:
    """One run: its contenders, and what it has found."""

    def __init__(
        self,
        config: ComparisonConfig,
        say: Callable[[str], None],
        check: Callable[[], None],
        stack: ExitStack,
    ) -> None:
        self._config = config
        self._say = say
        self._check_signals = check
        self._stack = stack
        self._servers: list[OurServer] = []
        self._contenders: list[Contender] = []
        self._left_out: list[str] = []
        self._has_failed = False
        self._words: tuple[str, ...] = ()
        self._made: list[Comparison] = []

    def run(self) -> int:
        """Open everything, and make the comparisons; returns the exit status."""
        self._say(f"{Machine.this()}; results go to {self._config.output}")
        self._open_servers()
        with self._servers[0].asked() as client:
            tokens = client.tokenize(list(COMMON_WORDS)).tokens
        self._words = whole_words(COMMON_WORDS, [len(row) for row in tokens])
        for choice in self._config.peers:
            self._open_peer(choice)
        try:
            for kind in self._config.kinds:
                self._compare(kind)
        except Interrupted as interruption:
            self._save(self._made[-1], str(interruption))
            raise
        except ServerFailed as error:  # what others are held against is gone
            self._save(self._made[-1], str(error))
            self._say(f"\n{error}")
            return exit_codes.FAILED
        return exit_codes.FAILED if self._has_failed else exit_codes.OK

    def _check(self) -> None:
        """Raise what ends a wait: a signal's, or ServerFailed if a server of ours has ended."""
        self._check_signals()
        for server in self._servers:
            server.check_alive()

    # contenders

    def _open_servers(self) -> None:
        for dtype in self._config.dtypes:
            try:
                self._open_server(dtype)
            except ServerFailed as error:
                if self._config.dtypes_are_chosen or not self._servers:
                    raise
                self._leave_out(f"bert-serving, {dtype} is left out: {error}")

    def _open_server(self, dtype: str) -> None:
        options = {**self._config.server_options, "cpu": True, "dtype": dtype}
        process = ServerProcess(
            options,
            self._config.output / SERVER_LOG,
            wait_s=self._config.wait_till_ready_s,
            check=self._check,
        )
        self._stack.callback(process.stop, at_once=True)
        try:
            process.start()
            server = OurServer(process)
        except ServerFailed:
            process.stop(at_once=True)  # others may be measured all the same
            raise
        self._stack.callback(server.client.close)
        self._servers.append(server)
        self._contenders.extend(server.contenders)
        self._say(f"bert-serving, {dtype}: ready")

    def _open_peer(self, choice: PeerChoice) -> None:
        if reason := what_is_missing(choice):
            self._leave_out(reason)
            return
        for dtype in choice.peer.dtypes:
            options = Options(
                str(self._config.model_dir.absolute()), dtype, num_cores(), choice.address
            )
            process = PeerProcess(
                choice, options, self._config.output / PEER_LOG, check=self._check
            )
            self._stack.callback(process.stop)
            try:
                facts = process.start()
            except PeerFailed as error:
                process.stop()
                self._fail(f"{choice.peer.name}, {dtype}", error)
                continue
            if any((c.name, c.dtype) == (facts.name, facts.dtype) for c in self._contenders):
                process.stop()  # its own choice is a type that it was measured in already
                continue
            self._contenders.append(PeerContender(process, facts))
            self._say(f"{facts.name} {facts.version}, {facts.dtype}: ready")

    def _leave_out(self, reason: str) -> None:
        self._left_out.append(reason)
        self._say(reason)

    def _fail(self, who: str, error: Exception) -> None:
        self._has_failed = True
        self._leave_out(f"{who} failed: {error}")

    # measuring

    def _compare(self, kind: str) -> None:
        config, model = self._config, self._servers[0].status["model"]
        comparison = Comparison(
            kind=kind,
            date=time.strftime("%Y-%m-%d %H:%M:%S %z"),
            machine=Machine.this(),
            versions=versions(),
            model=f"{Path(model['name']).name} "
            f"({model['num_layers']} layers of {model['hidden_size']})",
            num_layers=model["num_layers"],
            command=config.command,
            environment=config.environment,
            rounds=config.rounds,
            seconds=config.seconds,
            left_out=self._left_out,
        )
        self._made.append(comparison)
        self._say(f"\n{comparison_report.title(comparison)}")
        self._measure_products(comparison)
        for workload in workloads(kind, config.lengths, model["max_length"]):
            self._measure(comparison, workload)
            self._save(comparison, NOT_FINISHED)
        self._measure_products(comparison)
        self._save(comparison, "")
        if self._config.document is not None:
            self._publish(comparison, self._config.document)

    def _measure_products(self, comparison: Comparison) -> None:
        dtypes = dict.fromkeys(contender.dtype for contender in self._contenders)
        comparison.keep_best(best_matrix_product(dtype, "cpu", 1, self._check) for dtype in dtypes)

    def _measure(self, comparison: Comparison, workload: Workload) -> None:
        block = workload.texts(self._words, workload.block)
        with self._servers[0].asked() as client:
            counts = client.encode_detailed(block, {}).n_tokens.astype(np.int64)
        work = Work(1, self._servers[0].status["model"]["hidden_size"], None)
        result = WorkloadResult(
            name=workload.name,
            tokens=float(counts.mean()),
            layer_gflop=work.gflop(int(counts.sum()), int((counts**2).sum())) / len(counts),
        )
        comparison.workloads.append(result)
        taking_part = self._prepared(workload, result, int(counts.max()))
        for number in range(1, self._config.rounds + 1):
            for measured in list(taking_part):
                if not self._measure_once(measured):
                    taking_part.remove(measured)
            self._say(comparison_report.round_line(number, result))
        for line in comparison_report.workload_lines(comparison, result):
            self._say(line)

    def _prepared(self, workload: Workload, result: WorkloadResult, longest: int) -> list[Measured]:
        """Have each contender checked, tuned, and given as much work as takes it its time."""
        prepared = []
        for contender in list(self._contenders):
            self._check()
            entry = Entry(
                name=contender.name,
                version=contender.version,
                dtype=contender.dtype,
                layers=contender.layers,
                is_ours=isinstance(contender, Ours),
            )
            try:
                texts = self._prepare(contender, entry, workload)
            except PeerFailed as error:
                self._drop(contender, error)
                continue
            entry.excluded = why_excluded(
                entry,
                reference=self._servers[0].dtype,
                max_tokens=contender.max_tokens,
                longest=longest,
            )
            result.entries.append(entry)
            prepared.append(Measured(contender, entry, texts))
        return prepared

    def _prepare(self, contender: Contender, entry: Entry, workload: Workload) -> list[str]:
        few = workload.texts(self._words, workload.block)
        contender.encode(few[:1])
        rate = len(few) / contender.encode(few)
        seconds = self._config.seconds
        rows = workload.rows(rate, TRIED * seconds)
        entry.settings = contender.tune(workload.texts(self._words, rows), TUNING * seconds)
        entry.cosine = self._cosine(contender, few)
        rate = rows / contender.encode(workload.texts(self._words, rows))
        entry.rows = workload.rows(rate, seconds)
        return workload.texts(self._words, entry.rows)

    def _cosine(self, contender: Contender, texts: Sequence[str]) -> float:
        """Return how equal its vectors are to those of our first server, out of one layer."""
        checked = list(texts[:CHECKED_ROWS])
        if contender.max_tokens is not None:  # long rows are cut there: compare what is not
            checked = sorted(texts, key=lambda text: len(text.split()))[:CHECKED_ROWS]
        reference = self._servers[0].vectors(checked, contender.layers)
        return least_cosine(contender.vectors(checked), reference)

    def _measure_once(self, measured: Measured) -> bool:
        """Measure a contender; returns whether it still takes part."""
        self._check()
        try:
            measured.entry.seconds.append(measured.contender.encode(measured.texts))
        except PeerFailed as error:
            self._drop(measured.contender, error)
            return False
        return True

    def _drop(self, contender: Contender, error: Exception) -> None:
        self._contenders.remove(contender)
        self._fail(f"{contender.name}, {contender.dtype}", error)
        if isinstance(contender, PeerContender):
            contender.stop()

    # what is found

    def _save(self, comparison: Comparison, ended: str) -> None:
        """Write tables, numbers and the picture: whole, or not at all."""
        comparison.ended = ended
        folder = self._config.output
        if self._config.plots and comparison.workloads:
            comparison.picture = f"comparison-{comparison.kind}.png"
            comparison_plot.draw(comparison, folder / comparison.picture)
        sections = [
            f"## {comparison_report.title(made)}\n\n{comparison_report.to_markdown(made)}\n"
            for made in self._made
        ]
        numbers = json.dumps([made.to_dict() for made in self._made], indent=1)
        _write(folder / comparison_report.JSON, numbers + "\n")
        _write(folder / comparison_report.MARKDOWN, "# Comparisons\n\n" + "\n".join(sections))

    def _publish(self, comparison: Comparison, document: Path) -> None:
        title = comparison_report.title(comparison)
        try:
            self._put_into(document, title, comparison)
        except (OSError, ValueError) as error:  # it was good when this was begun
            self._has_failed = True
            self._say(f"{document}: no section {title!r}: {error}")
        else:
            self._say(f"{document}: section {title!r}")

    def _put_into(self, document: Path, title: str, comparison: Comparison) -> None:
        """Put the comparison into the document, with its picture beside it."""
        published = replace(comparison)
        if comparison.picture is not None:
            picture = Path(document.stem, f"{file_name(title)}.png")
            (document.parent / picture).parent.mkdir(parents=True, exist_ok=True)
            comparison_plot.draw(comparison, document.parent / picture)
            published = replace(comparison, picture=picture.as_posix())
        old = document.read_text("utf-8") if document.exists() else ""
        text = comparison_report.to_markdown(published)
        _write(document, put_section(old, title, title, text))


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}")
    partial.write_text(text, "utf-8")
    partial.replace(path)
