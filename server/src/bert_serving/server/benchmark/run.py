"""Runs experiments: a server for each value that needs one, clients, and what they found.

What was found is written after every value, so that an end of any kind loses no more than
the value at hand. Signals only set a flag; each wait looks at it.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType
from typing import Any

from bert_serving.client import BertClient
from bert_serving.client.errors import ServingError
from bert_serving.client.view import View
from bert_serving.server import exit_codes
from bert_serving.server.config import option_fields

from . import plots, report
from .experiments import BenchmarkConfig, Experiment, Load, Step
from .load import LoadFailed, run_load
from .machine import Machine, MatrixProduct, best_matrix_product, versions
from .measurement import Measurement, Work, failure, layers_needed, measure
from .report import ExperimentResult, Results
from .server_process import ServerFailed, ServerProcess
from .words import COMMON_WORDS, MOST_WORDS, whole_words

SERVER_LOG = "server.log"
SPECIAL_TOKENS = 2
NOT_FINISHED = "not finished"
END_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SIGNALLED = 128
"""Plus the signal's number: the exit status of what a signal ended, as shells have it."""


class Interrupted(Exception):
    """A signal asks for the end."""

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.number = number


def run(config: BenchmarkConfig, say: Callable[[str], None]) -> int:
    """Run all experiments; returns the exit status.

    Args:
        config: what to do.
        say: shows a line to the user.

    Raises:
        ServerFailed: the very first server did not start.

    """
    with signals() as check, Benchmark(config, say, check) as benchmark:
        return benchmark.run()


@contextmanager
def signals() -> Iterator[Callable[[], None]]:
    """Give a function that raises `Interrupted` after a signal."""
    received: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        received.append(number)

    def check() -> None:
        if received:
            raise Interrupted(received[0])

    old = {number: signal.signal(number, note) for number in END_SIGNALS}
    if old[signal.SIGHUP] == signal.SIG_IGN:  # as nohup has it
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield check
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


class Benchmark:
    """One run: its results so far, and the server under test."""

    def __init__(
        self, config: BenchmarkConfig, say: Callable[[str], None], check: Callable[[], None]
    ) -> None:
        self._config = config
        self._say = say
        self._check_signals = check
        self._server: ServerProcess | None = None
        self._status: dict[str, Any] = {}
        self._words = config.words
        self._has_served = False
        self._product: MatrixProduct | None = None
        self._results = Results(
            date=time.strftime("%Y-%m-%d %H:%M:%S %z"),
            machine=Machine.this(),
            versions=versions(),
            options=config.to_dict(),
            environment=config.environment,
        )

    def __enter__(self) -> Benchmark:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stop_server(at_once=kind is not None)

    def run(self) -> int:
        """Run the experiments one after the other; returns the exit status."""
        self._say(f"{self._results.machine}; results go to {self._config.output}")
        try:
            for experiment in self._config.experiments:
                self._run_experiment(experiment)
        except Interrupted as interruption:
            self._stop_server(at_once=True)
            self._save(str(interruption))
            self._say(f"\n{interruption}: {self._config.output} has the results until then")
            return SIGNALLED + interruption.number
        self._save("")
        self._say(f"\nresults: {self._config.output / report.MARKDOWN}")
        failed = [m for e in self._results.experiments for m in e.measurements if m.errors]
        if failed:
            values = "1 value" if len(failed) == 1 else f"{len(failed)} values"
            self._say(f"{values} had errors")
        return exit_codes.FAILED if failed else exit_codes.OK

    def _run_experiment(self, experiment: Experiment) -> None:
        options, load = self._config.server_options, self._config.load
        try:
            self._serve(experiment.first_options(options))
        except ServerFailed:  # tried again, and reported, where its value is measured
            if not self._has_served:
                raise
        result = self._new_result(experiment)
        self._results.experiments.append(result)
        steps = experiment.steps(options, load, self._status["model"]["num_layers"])
        for line in report.experiment_head(
            result,
            varies_server=experiment.variable.varies_server,
            rows=sum(step.load.rows for step in steps),
            rows_per_s=self._results.best_rows_per_s,
        ):
            self._say(line)
        try:
            for step in steps:
                self._add(result, self._measure(step, result.matrix_product))
        finally:
            self._draw(result)

    def _add(self, result: ExperimentResult, measurement: Measurement) -> None:
        result.measurements.append(measurement)
        self._say(report.table_line(result.name, measurement))
        for line in report.messages(measurement):
            self._say(f"    {line}")
        self._save(NOT_FINISHED)

    def _measure(self, step: Step, product: MatrixProduct | None) -> Measurement:
        try:
            server = self._serve(step.server_options)
            calls = run_load(
                step.load,
                address=(server.host, server.port),
                words=self._words,
                longest=self._longest,
                check=self._check,
            )
        except (ServerFailed, LoadFailed) as error:
            return failure(step.value, error)
        return measure(step.value, calls, self._work(step.load, product))

    # the server under test

    def _serve(self, options: Mapping[str, Any]) -> ServerProcess:
        """Return a server with these options that is ready: the last one, if it has them."""
        server = self._server
        if server is not None and server.options == options and server.is_alive:
            return server
        self._stop_server(at_once=False)
        self._server = server = ServerProcess(
            options,
            self._config.output / SERVER_LOG,
            wait_s=self._config.wait_till_ready_s,
            check=self._check_signals,
        )
        try:
            server.start()
            self._status = self._ask(server)
        except ServerFailed:
            self._stop_server(at_once=True)
            raise
        self._has_served = True
        return server

    def _ask(self, server: ServerProcess) -> dict[str, Any]:
        """Return the server's status; at the first one, also find out which words it knows."""
        try:
            with BertClient(ip=server.host, port=server.port) as client:
                if not self._words:
                    tokens = client.tokenize(list(COMMON_WORDS)).tokens
                    self._words = whole_words(COMMON_WORDS, [len(row) for row in tokens])
                return client.server_status
        except ServingError as error:
            raise ServerFailed(f"the server does not answer: {error}") from None

    def _stop_server(self, *, at_once: bool) -> None:
        if self._server is not None:
            self._server.stop(at_once=at_once)
            self._server = None

    def _check(self) -> None:
        self._check_signals()
        if self._server is not None:
            self._server.check_alive()

    # what is known of it

    def _new_result(self, experiment: Experiment) -> ExperimentResult:
        status = self._status
        return ExperimentResult(
            name=experiment.name,
            load=experiment.constants(self._config.load),
            model=status["model"],
            workers=len(status["workers"]),
            settings={
                entry.name: status[entry.name] for entry in option_fields() if entry.name in status
            },
            matrix_product=self._matrix_product(),
        )

    def _matrix_product(self) -> MatrixProduct | None:
        model = self._status["model"]
        if model["architecture"] == "fake":  # it multiplies nothing
            return None
        devices = {worker["device"] for worker in self._status["workers"]}
        product = best_matrix_product(
            model["dtype"], model["device"], len(devices), self._check_signals
        )
        # the best so far is nearest to the limit: others may be using the machine now
        self._product = max(product, self._product or product, key=lambda p: p.gflops or 0.0)
        return self._product

    def _work(self, load: Load, product: MatrixProduct | None) -> Work | None:
        if product is None:
            return None
        model, view = self._status["model"], View.parse(self._status["default_view"])
        if load.pooling_layer is not None:
            view = replace(view, layers=(load.pooling_layer,))
        layers = layers_needed(view, model["num_layers"])
        return Work(layers, model["hidden_size"], product.gflops)

    @property
    def _longest(self) -> int:
        max_length: int = self._status["model"]["max_length"]
        return min(max_length - SPECIAL_TOKENS, MOST_WORDS)

    # what is found

    def _save(self, ended: str) -> None:
        """Write the tables: whole, or not at all."""
        self._results.ended = ended
        texts = {
            report.MARKDOWN: report.to_markdown(self._results),
            report.JSON: json.dumps(self._results.to_dict(), indent=1) + "\n",
        }
        for name, text in texts.items():
            partial = self._config.output / f".{name}"
            partial.write_text(text, "utf-8")
            partial.replace(self._config.output / name)

    def _draw(self, result: ExperimentResult) -> None:
        if self._config.plots and result.measurements:
            result.picture = f"{result.name}.png"
            plots.draw(result, str(self._results.machine), self._config.output / result.picture)
