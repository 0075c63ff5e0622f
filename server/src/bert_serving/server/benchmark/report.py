"""Tables: on the terminal as they grow, in Markdown, and all numbers in JSON. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from .experiments import WARM_UP_REPEATS
from .machine import Machine, MatrixProduct
from .measurement import Measurement, Spread

MARKDOWN, JSON = "results.md", "results.json"
NONE = "-"


@dataclass(kw_only=True)
class ExperimentResult:
    """What one experiment gave so far.

    Attributes:
        name: of its variable.
        load: in words: what its values have in common.
        model: what the server says of its model.
        workers: how many it has.
        settings: of the server of the first value.
        matrix_product: the best until then, measured while the server was idle; None for a
            model that multiplies none.
        measurements: one a value.
        picture: the name of its file; None if there is none.

    """

    name: str
    load: str
    model: Mapping[str, Any]
    workers: int
    settings: Mapping[str, Any]
    matrix_product: MatrixProduct | None
    measurements: list[Measurement] = field(default_factory=list)
    picture: str | None = None

    @property
    def model_words(self) -> str:
        """What is served, where, in words."""
        model = self.model
        workers = "1 worker" if self.workers == 1 else f"{self.workers} workers"
        return (
            f"{model['name']} ({model['architecture']}, {model['num_layers']} layers of "
            f"{model['hidden_size']}), {model['dtype']} on {self.device_words}, {workers}"
        )

    @property
    def device_words(self) -> str:
        """Where it is served."""
        name = self.matrix_product.device_name if self.matrix_product else ""
        return name or str(self.model["device"])


@dataclass(kw_only=True)
class Results:
    """What a benchmark gave so far.

    Attributes:
        date: when it was started.
        machine: what it ran on.
        versions: of what it ran.
        options: what it was told.
        environment: the settings of the server that stood in the environment.
        experiments: those begun.
        ended: why it is not complete; empty if it is.

    """

    date: str
    machine: Machine
    versions: Mapping[str, str]
    options: Mapping[str, Any]
    environment: Mapping[str, str]
    experiments: list[ExperimentResult] = field(default_factory=list)
    ended: str = "not finished"

    @property
    def best_rows_per_s(self) -> float:
        """The best rate so far; 0 if there is none."""
        measured = [m for experiment in self.experiments for m in experiment.measurements]
        return max((m.rows_per_s.middle for m in measured), default=0.0)

    def to_dict(self) -> dict[str, Any]:
        """Return everything, as JSON has it."""
        return asdict(self)


@dataclass(frozen=True)
class _Column:
    title: str
    width: int
    text: Callable[[Measurement], str]


def _columns(name: str) -> list[_Column]:
    return [
        _Column(name, max(len(name), 8), lambda m: str(m.value)),
        _Column("sentences/s", 11, lambda m: _number(m.rows_per_s.middle)),
        _Column("min to max", 18, lambda m: _range(m.rows_per_s)),
        _Column("per client (min to max)", 25, _per_client),
        _Column("tokens/s", 9, lambda m: _number(m.tokens_per_s)),
        _Column("p50 ms", 7, lambda m: _number(m.latency_ms.p50) if m.latency_ms else NONE),
        _Column("p95 ms", 7, lambda m: _number(m.latency_ms.p95) if m.latency_ms else NONE),
        _Column("p99 ms", 7, lambda m: _number(m.latency_ms.p99) if m.latency_ms else NONE),
        _Column("rows", 8, lambda m: f"{m.rows:,}"),
        _Column("share", 5, lambda m: NONE if m.share is None else f"{m.share:.2f}"),
        _Column("errors", 6, _errors),
    ]


def experiment_head(
    result: ExperimentResult, *, varies_server: bool, rows: int, rows_per_s: float
) -> list[str]:
    """Return the lines above an experiment's values, for the terminal.

    Args:
        result: of the experiment, without values yet.
        varies_server: whether each value has a server of its own.
        rows: sentences to send in all.
        rows_per_s: what was reached before, to foretell how long it takes; 0 if not known.

    """
    servers = "a server for each value" if varies_server else "one server for all values"
    time = f", about {_duration(rows / rows_per_s)}" if rows_per_s else ""
    product = [str(result.matrix_product)] if result.matrix_product else []
    titles = "  ".join(column.title.rjust(column.width) for column in _columns(result.name))
    return [
        f"\n{result.name}: {servers}, {rows:,} sentences{time}",
        *(f"  {line}" for line in (result.load, result.model_words, *product)),
        titles,
    ]


def table_line(name: str, measurement: Measurement) -> str:
    """Return one value's line of the table for the terminal."""
    return "  ".join(c.text(measurement).rjust(c.width) for c in _columns(name))


def messages(measurement: Measurement) -> list[str]:
    """Return what the errors of a value say, a line a type."""
    return [f"{name}: {text}" for name, text in measurement.messages.items()]


def to_markdown(results: Results) -> str:
    """Return the report."""
    parts = [f"# bert-serving-benchmark, {results.date}"]
    if results.ended:
        parts.append(f"**{results.ended}**: what follows is what was measured until then.")
    parts.append(_facts(results))
    parts.extend(_section(experiment) for experiment in results.experiments)
    parts.append(_legend())
    return "\n\n".join(parts) + "\n"


def _facts(results: Results) -> str:
    environment = " ".join(f"{name}={value}" for name, value in results.environment.items())
    facts = {
        "machine": str(results.machine),
        "versions": ", ".join(f"{name} {version}" for name, version in results.versions.items()),
        "server": f"`bert-serving-start {results.options['server']}`",
        "environment": f"`{environment}`" if environment else "no settings in it",
    }
    return "\n".join(f"- {name}: {text}" for name, text in facts.items())


def _section(experiment: ExperimentResult) -> str:
    columns = _columns(experiment.name)
    titles = [f"`{experiment.name}`", *(column.title for column in columns[1:])]
    rows = [[_cell(c.text(m)) for c in columns] for m in experiment.measurements]
    lines = [f"| {' | '.join(cells)} |" for cells in (titles, ["---:"] * len(titles), *rows)]
    product = f"; {experiment.matrix_product}" if experiment.matrix_product else ""
    parts = [
        f"## {experiment.name}",
        f"{experiment.load}.\n{experiment.model_words}{product}.",
        "\n".join(lines),
    ]
    said = [f"- {m.value}: {line}" for m in experiment.measurements for line in messages(m)]
    if said:
        parts.append("\n".join(said))
    if experiment.picture:
        parts.append(f"![{experiment.name}]({experiment.picture})")
    return "\n\n".join(parts)


def _legend() -> str:
    return f"""\
- sentences/s, tokens/s: of all clients together: median, and least to most, over slices of the time
  in which all of them are at work. The first {WARM_UP_REPEATS} calls of each are left out.
- per client: mean of the clients' own rates.
- ms: duration of a call, percentiles.
- rows: sentences answered in all, the first {WARM_UP_REPEATS} calls included.
- share: FLOPs on real tokens, an inner layer of four times the hidden size assumed, over those of
  the machine's best matrix product, measured while the server was idle. Above 1, others used the
  machine just then.
- errors: calls that ended with one, by type; they speed nothing up."""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{max(seconds, 1):.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def _range(spread: Spread) -> str:
    return f"{_number(spread.least)} to {_number(spread.most)}"


def _per_client(measurement: Measurement) -> str:
    spread = measurement.client_rows_per_s
    middle = _number(spread.middle)
    return middle if spread.least == spread.most else f"{middle} ({_range(spread)})"


def _errors(measurement: Measurement) -> str:
    counts = [f"{count} {name}" for name, count in measurement.errors.items()]
    return ", ".join(counts) or "0"
