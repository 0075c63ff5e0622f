"""Runs experiments: a server for each value that needs one, clients, and what they found.

What was found is written after every value, so that an end of any kind loses no more than
the value at hand. Signals only set a flag; each wait looks at it.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType

from bert_serving.server import exit_codes
from bert_serving.server.config import option_fields

from . import plots, report
from .experiments import MIXED, NUM_CLIENT, OVERHEAD, BenchmarkConfig, Experiment, Step
from .load import LoadFailed
from .machine import Machine, MatrixProduct, versions
from .measurement import Measurement, failure
from .mixed import measure_mixed
from .overhead import measure_overhead
from .report import ExperimentResult, Results
from .server_process import ServerFailed
from .targets import OURS, Target
from .under_test import ServerUnderTest
from .wiring import check_answering

SERVER_LOG = "server.log"
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
        ServerFailed: the very first server did not start, or one beside it does not answer.

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
        self._server = ServerUnderTest(
            config.output / SERVER_LOG,
            wait_s=config.wait_till_ready_s,
            words=config.words,
            check=check,
        )
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
        self._server.stop(at_once=kind is not None)

    def run(self) -> int:
        """Run the experiments one after the other; returns the exit status."""
        self._say(f"{self._results.machine}; results go to {self._config.output}")
        try:
            for experiment in self._config.experiments:
                check_answering(self._others(experiment), self._server.check)
            for experiment in self._config.experiments:
                self._run_experiment(experiment)
        except Interrupted as interruption:
            self._server.stop(at_once=True)
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
            self._server.serve(experiment.first_options(options))
        except ServerFailed:  # tried again, and reported, where its value is measured
            if not self._server.has_served:
                raise
        result = self._new_result(experiment)
        self._results.experiments.append(result)
        steps = experiment.steps(options, load, self._server.status["model"]["num_layers"])
        rows = [step.load.rows for step in steps]
        for line in report.experiment_head(
            result,
            varies_server=experiment.variable.varies_server,
            rows=None if None in rows else sum(row for row in rows if row is not None),
            rows_per_s=self._results.best_rows_per_s,
        ):
            self._say(line)
        try:
            for step in steps:
                for measurement in self._measurements(experiment, step, result.matrix_product):
                    self._add(result, measurement)
        finally:
            self._draw(result)

    def _add(self, result: ExperimentResult, measurement: Measurement) -> None:
        result.measurements.append(measurement)
        self._say(report.table_line(result, measurement))
        for line in report.messages(measurement):
            self._say(f"    {line}")
        self._save(NOT_FINISHED)

    def _measurements(
        self, experiment: Experiment, step: Step, product: MatrixProduct | None
    ) -> Iterator[Measurement]:
        try:
            self._server.serve(step.server_options)
            if experiment.name == MIXED:
                yield from measure_mixed(self._server, step)
            elif experiment.name == OVERHEAD:
                yield measure_overhead(self._server, step)
            else:
                measured = self._server.measure(step.value, step.load, product)
                others = self._others(experiment)
                yield replace(measured, label=OURS) if others else measured
                for target in others:
                    yield self._server.measure_other(step.value, step.load, target)
        except (ServerFailed, LoadFailed) as error:
            yield failure(step.value, error)

    def _others(self, experiment: Experiment) -> Sequence[Target]:
        return self._config.others if experiment.name == NUM_CLIENT else ()

    def _new_result(self, experiment: Experiment) -> ExperimentResult:
        status = self._server.status
        return ExperimentResult(
            name=experiment.name,
            label="server" if self._others(experiment) else experiment.label,
            load=experiment.constants(self._config.load),
            model=status["model"],
            workers=len(status["workers"]),
            settings={
                entry.name: status[entry.name] for entry in option_fields() if entry.name in status
            },
            matrix_product=self._server.matrix_product(),
        )

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
