"""No decision depends on the wall clock, which people and programs set."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [
    path
    for part in ("client", "server")
    for path in sorted((ROOT / part / "src").rglob("*.py"))
    if "benchmark" not in path.parts
]
WALL_CLOCK = {
    ("time", "time"),
    ("time", "time_ns"),
    ("time", "localtime"),
    ("time", "gmtime"),
    ("datetime", "now"),
    ("datetime", "utcnow"),
    ("datetime", "today"),
}
FOR_PEOPLE = {
    "roster.py": "when the server was started, in its status",
    "machine.py": "whether the clock jumps, which the doctor says",
}
"""Who may read it all the same, and for what."""


def reads_wall_clock(source: str) -> bool:
    return any(
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and (node.value.id, node.attr) in WALL_CLOCK
        for node in ast.walk(ast.parse(source))
    )


def test_a_reading_of_the_wall_clock_is_found() -> None:
    assert reads_wall_clock("import time\nnow = time.time()")
    assert not reads_wall_clock("import time\nnow = time.monotonic()")


def test_only_what_is_told_to_people_comes_from_the_wall_clock() -> None:
    readers = {path.name for path in SOURCES if reads_wall_clock(path.read_text("utf-8"))}
    assert readers == FOR_PEOPLE.keys()


def test_nobody_imports_the_wall_clock_by_its_own_name() -> None:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "time":
                assert not {("time", alias.name) for alias in node.names} & WALL_CLOCK, path
