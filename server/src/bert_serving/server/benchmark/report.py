"""Tables: on the terminal as they grow, in Markdown, and all numbers in JSON. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from .experiments import MIXED, OVERHEAD, WARM_UP_REPEATS
from .machine import Machine, MatrixProduct
from .measurement import (
    BARE_MS,
    BULK,
    BULK_SHARE,
    OVER_BARE,
    P50_OVER_ALONE,
    P99_OVER_ALONE,
    Measurement,
    Spread,
)

MARKDOWN, JSON = "results.md", "results.json"
NONE = "-"

MOST_CALLS = 5_000
"""Of one measurement: more of them are left out of the JSON."""


@dataclass(kw_only=True)
class ExperimentResult:
    """What one experiment gave so far.

    Attributes:
        name: of its variable.
        label: what tells several measurements of a value apart; empty if there is one.
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
    label: str = ""
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
        """Return everything, as JSON has it, but for the calls where they are very many."""
        everything = asdict(self)
        for experiment in everything["experiments"]:
            for measurement in experiment["measurements"]:
                if len(measurement["calls"]) > MOST_CALLS:
                    measurement["calls"] = []
        return everything


@dataclass(frozen=True)
class _Column:
    title: str
    width: int
    text: Callable[[Measurement], str]


def _columns(result: ExperimentResult) -> list[_Column]:
    value = _Column(result.name, max(len(result.name), 8), lambda m: str(m.value))
    label = [_Column(result.label, 26, lambda m: m.label)] if result.label else []
    return [value, *label, *_OF.get(result.name, _ALL), _ERRORS]


def _latency(name: str) -> _Column:
    def text(measurement: Measurement) -> str:
        latency = measurement.latency_ms
        return _number(getattr(latency, name)) if latency is not None else NONE

    return _Column(f"{name} ms", 7, text)


def _extra(title: str, name: str, text: Callable[[float], str]) -> _Column:
    def found(measurement: Measurement) -> str:
        return text(measurement.extra[name]) if name in measurement.extra else NONE

    return _Column(title, len(title), found)


_CALLS = _Column("calls/s", 7, lambda m: _number(m.calls_per_s))
_LATENCIES = [_latency(name) for name in ("p50", "p95", "p99")]
_CORES = _Column("cores", 11, lambda m: _cores(m))
_ERRORS = _Column("errors", 6, lambda m: _errors(m))

_ALL = [
    _CALLS,
    _Column("sentences/s", 11, lambda m: _number(m.rows_per_s.middle)),
    _Column("min to max", 18, lambda m: _range(m.rows_per_s)),
    _Column("per client (min to max)", 25, lambda m: _per_client(m)),
    _Column("tokens/s", 9, lambda m: _number(m.tokens_per_s)),
    *_LATENCIES,
    _Column("rows", 8, lambda m: f"{m.rows:,}"),
    _CORES,
    _Column("share", 5, lambda m: NONE if m.share is None else _ratio(m.share)),
]
_OF = {
    MIXED: [
        _CALLS,
        *_LATENCIES,
        _extra("p50 / alone", P50_OVER_ALONE, lambda ratio: _ratio(ratio)),
        _extra("p99 / alone", P99_OVER_ALONE, lambda ratio: _ratio(ratio)),
        _extra("bulk sentences/s", BULK, lambda rate: _number(rate)),
        _extra("bulk / alone", BULK_SHARE, lambda ratio: _ratio(ratio)),
        _CORES,
    ],
    OVERHEAD: [
        *_LATENCIES,
        _extra("model's p50 ms", BARE_MS, lambda ms: f"{ms:.2f}"),
        _extra("p50 / model's", OVER_BARE, lambda ratio: _ratio(ratio)),
        _CORES,
    ],
}


def experiment_head(
    result: ExperimentResult, *, varies_server: bool, rows: int | None, rows_per_s: float
) -> list[str]:
    """Return the lines above an experiment's values, for the terminal.

    Args:
        result: of the experiment, without values yet.
        varies_server: whether each value has a server of its own.
        rows: sentences to send in all; None if that is not known before.
        rows_per_s: what was reached before, to foretell how long it takes; 0 if not known.

    """
    servers = "a server for each value" if varies_server else "one server for all values"
    count = f", {rows:,} sentences" if rows is not None else ""
    time = f", about {_duration(rows / rows_per_s)}" if rows and rows_per_s else ""
    product = [str(result.matrix_product)] if result.matrix_product else []
    titles = "  ".join(column.title.rjust(column.width) for column in _columns(result))
    return [
        f"\n{result.name}: {servers}{count}{time}",
        *(f"  {line}" for line in (result.load, result.model_words, *product)),
        titles,
    ]


def table_line(result: ExperimentResult, measurement: Measurement) -> str:
    """Return one value's line of the table for the terminal."""
    return "  ".join(c.text(measurement).rjust(c.width) for c in _columns(result))


def messages(measurement: Measurement) -> list[str]:
    """Return what the errors of a value say, a line a type."""
    return [f"{name}: {text}" for name, text in measurement.messages.items()]


def to_markdown(results: Results) -> str:
    """Return the report."""
    parts = [f"# bert-serving-benchmark, {results.date}"]
    if results.ended:
        parts.append(f"**{results.ended}**: what follows is what was measured until then.")
    parts.append(_facts(results))
    parts.extend(section(experiment) for experiment in results.experiments)
    parts.append(legend())
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


def section(experiment: ExperimentResult) -> str:
    """Return an experiment as a section of Markdown: what was served, its table, its picture."""
    columns = _columns(experiment)
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


def legend() -> str:
    """Return what the columns of the tables mean."""
    return f"""\
- sentences/s, tokens/s: of all clients together: median, and least to most, over slices of the time
  in which all of them are at work. The first {WARM_UP_REPEATS} calls of each are left out.
- calls/s: requests of one sentence, or of as many as the load says, answered a second.
- per client: mean of the clients' own rates.
- ms: duration of a call, percentiles.
- cores: that the clients' processes kept busy, and the server's, on average. Where the two come
  near the number of cores, clients and server take them from each other.
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


def _ratio(value: float) -> str:
    return f"{value:.2f}"


def _cores(measurement: Measurement) -> str:
    """Return the cores of clients and server."""
    busy = (measurement.client_cores, measurement.server_cores)
    return " + ".join(NONE if cores is None else _ratio(cores) for cores in busy)


def _errors(measurement: Measurement) -> str:
    counts = [f"{count} {name}" for name, count in measurement.errors.items()]
    return ", ".join(counts) or "0"
