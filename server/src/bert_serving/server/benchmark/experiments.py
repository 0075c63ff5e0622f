"""Which experiments follow from which options. Pure: no process, no socket, no clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bert_serving.server.config import ServerConfig

from .targets import Target

WARM_UP_REPEATS = 2
"""Connecting, and a server's first batches, are no measure of what follows."""

PORTS = ("port", "legacy_port", "legacy_port_out", "http_port")
DOORS = ("server_key", "client_keys", "worker_keys", "admin_keys", "backend_port")
NOT_OURS = (*PORTS, *DOORS, "port_out", "ready_file")


@dataclass(frozen=True)
class Variable:
    """Something that an experiment varies.

    Attributes:
        name: of the option that it varies; `-test_NAME` has its values.
        values: the default ones; None stands for each layer of the model.
        least, most: what a value may be.
        varies_server: whether each value needs a server of its own.
        meaning: what it is, for the help.

    """

    name: str
    values: tuple[int, ...] | None
    least: int
    most: int
    varies_server: bool
    meaning: str


NUM_CLIENT, MIXED, OVERHEAD = "num_client", "mixed", "overhead"

SECONDS = 10.0
"""How long clients of one sentence a call go on, where nothing else is said."""

BULK_ROWS = 512
"""Sentences a call of a bulk client beside others: enough to keep a server busy, and its
calls end often enough to be counted within seconds."""

# those that one server can serve come first, so that they all share it
VARIABLES = (
    Variable("client_batch_size", (1, 16, 256, 4096), 1, 1_000_000, False, "sentences a call"),
    Variable(NUM_CLIENT, (1, 4, 16, 64), 1, 1024, False, "clients at once"),
    Variable("pooling_layer", None, -256, 256, False, "hidden layer asked for"),
    Variable(
        *(MIXED, (1, 8), 1, 1024, False),
        "clients of one sentence a call, alone and beside a bulk client",
    ),
    Variable(
        *(OVERHEAD, (8, 16, 64), 1, 1_000_000, False),
        "words of one client's one sentence: its latency over the model's own",
    ),
    Variable("num_worker", (1, 2), 1, 1024, True, "workers"),
    Variable("max_batch_size", (8, 32, 128, 512), 1, 1_000_000, True, "rows a worker takes"),
    Variable(
        "max_seq_len", (32, 64, 128, 256), 4, 1_000_000, True, "tokens a row, words a sentence"
    ),
)


@dataclass(frozen=True)
class Load:
    """What clients do at the same time.

    Attributes:
        num_client: how many there are.
        client_batch_size: sentences that each encodes a call.
        num_repeat: calls that each makes, one after the other.
        sentence_words: words of every sentence; None mixes lengths as real text does.
        pooling_layer: the layer that they ask for; None is the server's own view.
        seconds: how long they go on, in place of `num_repeat`.
        rate: calls a second of all together, made whether or not earlier ones are answered;
            None for clients that make one after the other.
        delay_s: how long after those beside them they begin.
        beside: other clients, at work at the same time.

    """

    num_client: int = 1
    client_batch_size: int = 4096
    num_repeat: int = 10
    sentence_words: int | None = None
    pooling_layer: int | None = None
    seconds: float | None = None
    rate: float | None = None
    delay_s: float = 0.0
    beside: Load | None = None

    @property
    def rows(self) -> int | None:
        """Sentences sent in all; None if that is not known before."""
        if self.seconds is not None:
            return None
        return self.num_client * self.client_batch_size * self.num_repeat


@dataclass(frozen=True)
class Step:
    """One value of an experiment: the server's options, and the load on it."""

    value: int
    server_options: Mapping[str, Any]
    load: Load


@dataclass(frozen=True)
class Experiment:
    """One variable and the values it takes; None is each layer of the model."""

    variable: Variable
    values: tuple[int, ...] | None

    @property
    def name(self) -> str:
        """The variable's name."""
        return self.variable.name

    def steps(self, server_options: Mapping[str, Any], load: Load, num_layers: int) -> list[Step]:
        """Return a step for each value, with all else as it is given."""
        values = self.values or tuple(range(-1, -num_layers - 1, -1))
        return [self._step(value, server_options, load) for value in values]

    def constants(self, load: Load) -> str:
        """Return in words what the loads of all values have in common."""
        length = f"{load.sentence_words} words" if load.sentence_words else "mixed lengths"
        if self.name == "max_seq_len":
            length = "as many words"
        if self.name == MIXED:
            return f"1 sentence of {length} a call, {load.seconds or SECONDS:g} s each"
        if self.name == OVERHEAD:
            return f"1 client, 1 sentence a call, {load.seconds or SECONDS:g} s each"
        words = {
            "num_client": "1 client" if load.num_client == 1 else f"{load.num_client} clients",
            "client_batch_size": "1 sentence a call"
            if load.client_batch_size == 1
            else f"{load.client_batch_size} sentences a call",
            "num_repeat": f"{load.seconds:g} s"
            if load.seconds
            else f"{load.num_repeat} calls each",
            "sentence_words": f"sentences of {length}",
        }
        return ", ".join(text for name, text in words.items() if name != self.name)

    @property
    def label(self) -> str:
        """What tells several measurements of the same value apart; empty if there is one."""
        return "load" if self.name == MIXED else ""

    def first_options(self, server_options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the options of the server for the first value."""
        if self.values is None:
            return server_options
        return self._step(self.values[0], server_options, Load()).server_options

    def _step(self, value: int, server_options: Mapping[str, Any], load: Load) -> Step:
        if self.variable.varies_server:
            server_options = {**server_options, self.name: value}
        if self.name == "max_seq_len":
            load = replace(load, sentence_words=value)
        elif self.name in (MIXED, OVERHEAD):
            load = _interactive(self.name, value, load)
        elif not self.variable.varies_server:
            changed: dict[str, Any] = {self.name: value}
            load = replace(load, **changed)
        return Step(value, server_options, load)


def bulk_beside(load: Load) -> Load:
    """Return what a bulk client does beside clients with this load."""
    return replace(load, num_client=1, client_batch_size=BULK_ROWS, rate=None)


def _interactive(name: str, value: int, load: Load) -> Load:
    """Return the load of clients of one sentence a call."""
    return replace(
        load,
        num_client=value if name == MIXED else 1,
        client_batch_size=1,
        sentence_words=load.sentence_words if name == MIXED else value,
        seconds=load.seconds or SECONDS,
    )


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """What `bert-serving-benchmark` was told.

    Attributes:
        experiments: those to run.
        server_options: what stands on the command line of the servers under test.
        load: what is common to all experiments.
        others: servers that many clients are tried on as well.
        wait_till_ready_s: how long a server may take to start.
        words: to make sentences of; none for built-in ones.
        client_vocab_file: where they are from.
        environment: the settings that the servers find in the environment, for the report.
        output: the folder for what is found.
        plots: whether pictures are drawn.

    """

    experiments: tuple[Experiment, ...]
    server_options: Mapping[str, Any]
    load: Load
    others: tuple[Target, ...]
    wait_till_ready_s: float
    words: tuple[str, ...]
    client_vocab_file: Path | None
    environment: Mapping[str, str]
    output: Path
    plots: bool

    def to_dict(self) -> dict[str, Any]:
        """Return what of it belongs into a report."""
        return {
            "experiments": {entry.name: entry.values for entry in self.experiments},
            "server": " ".join(command_line(self.server_options)),
            "load": asdict(self.load),
            "others": [asdict(target) for target in self.others],
            "client_vocab_file": str(self.client_vocab_file) if self.client_vocab_file else None,
        }


def chosen_experiments(given: Mapping[str, list[int] | None]) -> tuple[Experiment, ...]:
    """Return the experiments that have values.

    Args:
        given: for each variable the values given; None for its default, none leaves it out.

    """
    experiments = []
    for variable in VARIABLES:
        values = given.get(variable.name)
        if values is None:
            experiments.append(Experiment(variable, variable.values))
        elif values:
            experiments.append(Experiment(variable, tuple(dict.fromkeys(values))))
    return tuple(experiments)


def options_under_test(given: Mapping[str, Any], config: ServerConfig) -> dict[str, Any]:
    """Return the options for the servers under test: those given, but any free ports.

    Only what was given, not all of `config`: environment and file reach the server by
    themselves, as they reach one that is started by hand. So do keys that stand there, and no
    option takes them back.

    Args:
        given: what was typed.
        config: what the server has, but for `NOT_OURS` of what was typed.

    Raises:
        ValueError: environment or file have keys, or a port for workers from elsewhere.

    """
    if doors := [name for name in DOORS if getattr(config, name) is not None]:
        raise ValueError(
            f"{', '.join(doors)} in the environment or the -config file: a server under test has "
            "no keys and no workers from elsewhere: leave it out there"
        )
    options = {name: value for name, value in given.items() if name not in NOT_OURS}
    options.update({name: 0 for name in PORTS if getattr(config, name) is not None})
    if config.legacy_port is not None:
        options["legacy_port_out"] = 0
    return options


def unused_options(given: Mapping[str, Any]) -> list[str]:
    """Return the names of the options given that servers under test do not get."""
    return [name for name in NOT_OURS if name in given]


def command_line(options: Mapping[str, Any]) -> list[str]:
    """Return options as they are typed for `bert-serving-start`."""
    words: list[str] = []
    for name, value in options.items():
        words.append(f"-{name}")
        if isinstance(value, list | tuple):
            words.extend(map(str, value))
        elif value is None:
            words.append("NONE")
        elif value is not True:
            words.append(str(value))
    return words
