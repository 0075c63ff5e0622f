"""From `ServerConfig` to options, and from command line, environment and file back to it.

What is written once in `config` is read from four places: the command line wins over
the environment (`BERT_SERVING_MODEL_DIR`), that over the file given with `--config`,
and that over the default. An environment variable without text is as none.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import Field
from pathlib import Path
from typing import Any

from bert_serving.server.config import ServerConfig, option_fields
from bert_serving.server.version import __version__

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ENVIRONMENT_PREFIX = "BERT_SERVING_"
TRUE_WORDS = {"1", "true", "yes", "on"}
FALSE_WORDS = {"0", "false", "no", "off", ""}
SERVICE_LINKS = ("tcp://", "udp://", "sctp://")
"""How the value begins that Kubernetes gives BERT_SERVING_PORT beside a Service `bert-serving`."""

DESCRIPTION = "Serve the embeddings of a BERT model over ZeroMQ."
EPILOG = (
    "Every option is also read from the environment (-model_dir as BERT_SERVING_MODEL_DIR) and "
    'from a TOML file given with --config (model_dir = "…"); -model_dir can be spelled '
    "--model-dir. The command line wins over the environment, and that over the file."
)


PORT_OUT_ADVICE = (
    "-port_out: there is only one port now, -port: results come back the way the request went. "
    "Leave -port_out out; or, for clients of bert-as-service 1.10, give -legacy_port and "
    "-legacy_port_out"
)


class SettingError(ValueError):
    """A setting from the environment or the file cannot be used; the message says why."""


def get_args_parser() -> argparse.ArgumentParser:
    """Return the parser of `bert-serving-start`; what is not given is not in its namespace."""
    parser = argparse.ArgumentParser(
        prog="bert-serving-start",
        description=DESCRIPTION,
        epilog=EPILOG,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("-version", "--version", action="version", version=__version__)
    parser.add_argument(
        "-config", "--config", metavar="FILE", help="read settings from a TOML file"
    )
    network = add_options(parser)["network"]
    network.add_argument(
        *("-port_out", "--port-out", "-port_result", "--port-result"),
        dest="port_out",
        type=int,
        help=argparse.SUPPRESS,
    )
    return parser


def add_options(
    parser: argparse.ArgumentParser,
    titles: Sequence[str] | None = None,
    left_out: Sequence[str] = (),
) -> dict[str, Any]:
    """Give a parser the options of these groups, by default all; returns the groups by title."""
    groups: dict[str, Any] = {}
    for entry in option_fields():
        title = entry.metadata["group"]
        if (titles is None or title in titles) and entry.name not in left_out:
            group = groups.get(title) or groups.setdefault(title, parser.add_argument_group(title))
            _add_option(group, entry)
    return groups


def parse_args(
    argv: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ
) -> ServerConfig:
    """Return the server's config from all four places; exits with a message if one is wrong."""
    parser = get_args_parser()
    try:
        return to_config(parser.parse_args(argv), environment)
    except SettingError as error:
        parser.error(str(error))


def to_config(
    args: argparse.Namespace, environment: Mapping[str, str] = os.environ
) -> ServerConfig:
    """Return the config of parsed arguments, environment, file and defaults.

    Raises:
        SettingError: a setting cannot be used, or two contradict each other.

    """
    given = dict(vars(args))
    file = given.pop("config", None) or environment.get(f"{ENVIRONMENT_PREFIX}CONFIG") or None
    port_out = given.pop("port_out", None)
    settings = {**read_file(file), **read_environment(environment), **given}
    if port_out is not None:
        if settings.get("legacy_port") is None:
            raise SettingError(PORT_OUT_ADVICE)
        settings.setdefault("legacy_port_out", port_out)
    if settings.get("http_port") is not None:
        raise SettingError("-http_port: this version does not speak HTTP yet; leave it out")
    if settings.get("fp16") and settings.get("dtype", "float16") not in ("auto", "float16"):
        raise SettingError(f"-fp16 and -dtype {settings['dtype']} contradict each other: give one")
    for name in ("pooling_layer", "device_map"):
        if name in settings:
            settings[name] = tuple(settings[name])
    return ServerConfig(**settings)


def read_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings among environment variables."""
    settings = {}
    for entry in option_fields():
        name = ENVIRONMENT_PREFIX + entry.name.upper()
        text = environment.get(name, "")
        if text and not (name.endswith("_PORT") and text.startswith(SERVICE_LINKS)):
            value = text.replace(",", " ").split() if entry.metadata["many"] else text
            settings[entry.name] = _converted(entry, value, name)
    return settings


def read_file(path: str | None) -> dict[str, Any]:
    """Return the settings of a TOML file."""
    if path is None:
        return {}
    try:
        with Path(path).open("rb") as file:
            values = tomllib.load(file)
    except (OSError, ValueError) as error:  # no TOML, or not in UTF-8
        raise SettingError(f"{path}: {error}") from None
    known = {entry.name: entry for entry in option_fields()}
    settings = {}
    for name, value in values.items():
        entry = known.get(name.replace("-", "_"))
        if entry is None:
            raise SettingError(f"{path}: there is no option {name!r}; known: {', '.join(known)}")
        settings[entry.name] = _converted(entry, value, f"{path}: {name}")
    return settings


def _add_option(group: Any, entry: Field[Any]) -> None:
    spelled = [entry.name, *entry.metadata["aliases"]]
    names = list(dict.fromkeys(s for n in spelled for s in (f"-{n}", f"--{n.replace('_', '-')}")))
    text = entry.metadata["ignored"] or entry.metadata["help"]
    if entry.default is False:
        group.add_argument(*names, dest=entry.name, action="store_true", help=text)
        return
    if entry.default not in (None, ()):
        default = entry.default
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
        text = f"{text} (default: {shown})"
    group.add_argument(
        *names,
        dest=entry.name,
        type=_argument(entry),
        nargs="+" if entry.metadata["many"] else None,
        metavar=entry.metadata["metavar"],
        choices=entry.metadata["choices"],
        help=text.replace("%", "%%"),
    )


def _argument(entry: Field[Any]) -> Any:
    """Return a converter whose error says what is allowed, for argparse."""

    def convert(text: str) -> Any:
        try:
            return entry.metadata["parse"](text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None

    return convert


def _converted(entry: Field[Any], value: Any, where: str) -> Any:
    parse, choices = entry.metadata["parse"], entry.metadata["choices"]
    try:
        if entry.default is False:
            return _flag(value)
        if entry.metadata["many"]:
            values = value if isinstance(value, list) else [value]
            if not values and entry.default:
                raise ValueError("expected a list of at least one")
            return tuple(parse(item) for item in values)
        converted = parse(value)
    except (ValueError, TypeError) as error:
        raise SettingError(f"{where} = {value!r}: {error}") from None
    if choices is not None and converted not in choices:
        raise SettingError(f"{where} = {value!r}: expected one of {', '.join(choices)}")
    return converted


def _flag(value: Any) -> bool:
    word = str(value).lower()
    if word in TRUE_WORDS:
        return True
    if word in FALSE_WORDS:
        return False
    raise ValueError("expected true or false")
