"""PROTOCOL.md says what the code does: its tables and its example are checked here."""

from __future__ import annotations

import re
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any

import msgpack
import pytest
from example_messages import ANSWERS, REQUESTS

from bert_serving.client import fields, frames, protocol, rows, view
from bert_serving.client.admin_messages import COMMANDS, MAX_PATH_CHARS, MAX_WORKERS
from bert_serving.client.errors import SERVER_ERRORS
from bert_serving.client.view import View

TEXT = (Path(__file__).resolve().parents[2] / "client" / "PROTOCOL.md").read_text("utf-8")
EXAMPLES = dict(re.findall(r"^```frames (\w+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL))


def section(heading: str) -> str:
    """Return what stands between a heading, with its hashes, and the next one."""
    _, found, rest = TEXT.partition(f"\n{heading}\n")
    assert found, f"PROTOCOL.md has no {heading!r}"
    return re.split(r"^#+ ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def table(text: str) -> list[list[str]]:
    """Return the cells of the first table in a text, without its head."""
    lines = re.search(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert lines is not None
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines[0].splitlines()]
    return [[cell.strip().replace("\\|", "|") for cell in line] for line in cells[2:]]


def code(cell: str) -> str:
    return cell.strip("`")


def example_frames(text: str) -> list[bytes]:
    """Return the frames that an example writes as hexadecimal and quoted text."""
    found: list[bytes] = [b""]
    for line in text.splitlines():
        if line == "--":
            found.append(b"")
            continue
        written = re.sub(r";.*", "", line)
        for quoted, octet in re.findall(r'"([^"]*)"|(\S+)', written):
            found[-1] += bytes.fromhex(octet) if octet else quoted.encode()
    return found


def test_the_example_has_the_messages_of_a_whole_exchange() -> None:
    assert list(EXAMPLES) == ["hello", "welcome", "encode", "result", "error"]


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_has_the_bytes_that_the_code_sends(name: str) -> None:
    message = {**REQUESTS, **ANSWERS}[name]
    assert example_frames(EXAMPLES[name]) == [bytes(frame) for frame in message.to_frames()]


@pytest.mark.parametrize(
    ("heading", "messages"),
    [
        (f"### {kind}", REQUESTS)
        for kind in ("hello", "encode", "cancel", "status", "membership", "admin")
    ]
    + [(f"### {kind}", ANSWERS) for kind in ("welcome", "result", "error", "broadcast")]
    + [(f"### {kind} (the answer)", ANSWERS) for kind in ("status", "membership", "admin")],
)
def test_the_table_of_a_message_has_its_fields_and_no_others(
    heading: str, messages: dict[str, Any]
) -> None:
    kind = heading.split()[1]
    headers = [msgpack.unpackb(message.to_frames()[1]) for message in messages.values()]
    sent = {name for header in headers if header["type"] == kind for name in header}
    assert {code(cells[0]) for cells in table(section(heading))} == sent


def test_the_table_of_a_group_part_has_its_fields_and_no_others() -> None:
    part = ANSWERS["broadcast"].group
    assert [code(cells[0]) for cells in table(section("## Groups"))] == list(part.to_wire())


def test_the_limits_are_those_of_the_code() -> None:
    limits = {cells[0]: int(cells[1].replace(",", "")) for cells in table(section("## Limits"))}
    assert limits == {
        "frames a message": frames.MAX_FRAMES,
        "bytes of a header": frames.MAX_HEADER_BYTES,
        "levels of lists and maps in a header": frames.MAX_HEADER_DEPTH,
        "items of all lists and maps of a header, keys included": frames.MAX_HEADER_ITEMS,
        "bytes of a rows or tokens buffer": rows.MAX_ROWS_BYTES,
        "items of all lists of a rows buffer": rows.MAX_TEXT_ITEMS,
        "items of all lists of a rows buffer of tokens": rows.MAX_TOKEN_ITEMS,
        "axes of an array": frames.MAX_ARRAY_DIMENSIONS,
        "rows a request": protocol.MAX_ROWS,
        "views a request": protocol.MAX_VIEWS,
        "groups a membership": protocol.MAX_GROUPS,
        "workers a `scale`": MAX_WORKERS,
        "characters of a `model_dir`": MAX_PATH_CHARS,
        "ints in a list": fields.MAX_LIST,
        "characters of a name": protocol.MAX_NAME_CHARS,
        "characters of an error's message": protocol.MAX_MESSAGE_CHARS,
        "greatest id": protocol.MAX_ID,
        "greatest `ttl_ms`": protocol.MAX_TTL_MS,
        "layers a view, and greatest layer number": view.MAX_LAYERS,
        "greatest `dims`": view.MAX_DIMS,
    }
    for limit in (protocol.MAX_ROWS, rows.MAX_ROWS_BYTES, view.MAX_DIMS):
        assert f"1 to {limit:,}" in TEXT


def test_the_commands_are_those_of_the_code() -> None:
    meanings = {code(cells[0]): cells[2] for cells in table(section("### admin"))}
    assert re.findall(r"`(\w+)`", meanings["command"]) == list(COMMANDS)


def test_the_errors_are_those_of_the_code() -> None:
    assert [[code(cell) for cell in cells[:4]] for cells in table(section("## Errors"))] == [
        [name, error.__name__, str(error.http_status), "yes" if error.retryable else "no"]
        for name, error in SERVER_ERRORS.items()
    ]


def test_the_dtypes_are_those_of_the_code() -> None:
    assert tuple(code(cells[0]) for cells in table(section("## Arrays"))) == frames.DTYPES


def test_the_fields_of_a_view_and_their_values_are_those_of_the_code() -> None:
    meanings = {code(cells[0]): cells[2] for cells in table(section("## Views"))}
    assert list(meanings) == [field.name for field in dataclass_fields(View)]
    for name, values in (
        ("layer_reduce", view.LAYER_REDUCTIONS),
        ("pooling", view.POOLINGS),
        ("dtype", view.OUTPUT_DTYPES),
    ):
        named = [value for value in re.findall(r"`(\w+)`", meanings[name]) if value in values]
        assert named == list(values)


def test_the_other_names_of_poolings_are_those_of_the_code() -> None:
    _, _, after_fields = section("## Views").partition("\n| name |")
    aliases = {
        alias: code(cells[1])
        for cells in table("| name |" + after_fields)
        for alias in re.findall(r"`(\w+)`", cells[0])
    }
    assert aliases == view._POOLING_ALIASES


def test_the_states_and_the_version_are_those_of_the_code() -> None:
    assert "`BERT`, then one byte with the version, `01`" in TEXT
    assert frames.VERSION_FRAME == b"BERT\x01"
