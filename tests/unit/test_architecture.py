"""The walls of the house: who may import whom."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from importlib.util import resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CLIENT, SERVER = "bert_serving.client", "bert_serving.server"
SOURCES = [
    path for part in ("client", "server") for path in sorted((ROOT / part / "src").rglob("*.py"))
]

IMPURE = {"zmq", "socket", "asyncio", "threading", "time", "random", "logging", "torch"}
WEB = {"fastapi", "uvicorn", "starlette"}
# what runs in the interpreters of others, that have torch and not our packages
PEER_PROGRAMS = f"{SERVER}.benchmark.peers.programs"

TORCH_FREE = {f"{SERVER}.model.{name}" for name in ("replica", "packing", "fake", "fake_rows")}

THIRD_PARTY_OF_THE_CLIENT = {"zmq", "msgpack", "numpy"}


def module_name(path: Path) -> str:
    parts = path.with_suffix("").parts
    dotted = ".".join(parts[parts.index("src") + 1 :])
    return dotted.removesuffix(".__init__")


def imported_names(source: str, package: str) -> set[str]:
    """Return every module, or name in a module, that a source imports anywhere, dotted."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = resolve_name("." * node.level + (node.module or ""), package)
            names.update(f"{module}.{alias.name}" for alias in node.names)
    return names


@cache
def imports() -> dict[str, set[str]]:
    """Return for each module of both packages what it imports."""
    graph = {}
    for path in SOURCES:
        name = module_name(path)
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        graph[name] = imported_names(path.read_text("utf-8"), package)
    return graph


def top_levels(module: str) -> set[str]:
    return {name.partition(".")[0] for name in imports()[module]}


def is_in(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def reached_from(module: str) -> set[str]:
    """Return the modules of both packages that a module imports, itself or through others."""
    reached: set[str] = set()
    waiting = {module}
    while waiting:
        names = imports()[waiting.pop()]
        found = {
            name if name in imports() else name.rpartition(".")[0] for name in names
        } & imports().keys()
        waiting |= found - reached
        reached |= found
    return reached


def test_imports_are_found_in_functions_and_in_every_spelling() -> None:
    source = "import a.b as c\nfrom . import d\nfrom ..e import f\ndef g():\n    from h import i\n"
    assert imported_names(source, "p.q") == {"a.b", "p.q.d", "p.e.f", "h.i"}


def test_the_sources_are_found() -> None:
    assert f"{CLIENT}.protocol" in imports()
    assert any(is_in(module, SERVER) for module in imports())


def test_the_client_never_imports_the_server() -> None:
    for module, names in imports().items():
        if is_in(module, CLIENT):
            assert not [name for name in names if is_in(name, SERVER)], module


@pytest.mark.parametrize(
    ("module", "above"),
    [
        ("errors", ["frames", "protocol", "session", "client", "aio"]),
        ("view", ["frames", "fields", "rows", "protocol", "session", "client", "aio"]),
        ("frames", ["fields", "rows", "protocol", "session", "client", "aio"]),
        ("fields", ["protocol", "session", "client", "aio"]),
        ("rows", ["protocol", "session", "client", "aio"]),
        ("protocol", ["session", "client", "aio"]),
        ("agenda", ["session", "fleet", "client", "aio"]),
        ("session", ["fleet", "client", "aio"]),
        ("fleet", ["client", "aio"]),
        ("client", ["aio"]),
        ("aio", ["client"]),
    ],
)
def test_a_module_of_the_client_imports_nothing_above_itself(module: str, above: list[str]) -> None:
    if f"{CLIENT}.{module}" not in imports():
        pytest.skip(f"{module} is not there yet")
    forbidden = {f"{CLIENT}.{name}" for name in above}
    assert not reached_from(f"{CLIENT}.{module}") & forbidden


def test_errors_import_nothing_of_ours() -> None:
    assert not reached_from(f"{CLIENT}.errors")


@pytest.mark.parametrize(
    "module", ["errors", "frames", "protocol", "presence", "agenda", "session", "fleet"]
)
def test_what_decides_in_the_client_has_no_socket_and_no_clock(module: str) -> None:
    if f"{CLIENT}.{module}" not in imports():
        pytest.skip(f"{module} is not there yet")
    for name in {f"{CLIENT}.{module}", *reached_from(f"{CLIENT}.{module}")}:
        assert not top_levels(name) & IMPURE, name


def test_scheduling_has_no_socket_and_no_clock() -> None:
    modules = [module for module in imports() if is_in(module, f"{SERVER}.scheduling")]
    assert modules
    for module in modules:
        for name in {module, *reached_from(module)}:
            assert not top_levels(name) & IMPURE, f"{module} by way of {name}"


@pytest.mark.parametrize("module", ["requests", "answers", "mailbox", "settings", "statistic"])
def test_what_decides_in_the_legacy_gateway_has_no_socket_and_no_clock(module: str) -> None:
    name = f"{SERVER}.gateway.legacy.{module}"
    for reached in {name, *reached_from(name)}:
        assert not top_levels(reached) & IMPURE, reached


def test_torch_is_imported_only_by_models() -> None:
    for module in imports():
        if "torch" in top_levels(module) and not is_in(module, PEER_PROGRAMS):
            assert is_in(module, f"{SERVER}.model"), module
            assert module not in TORCH_FREE


def test_what_runs_in_the_interpreters_of_peers_imports_nothing_of_ours() -> None:
    programs = [module for module in imports() if is_in(module, PEER_PROGRAMS)]
    assert len(programs) > 6
    for module in programs:
        ours = [name for name in imports()[module] if is_in(name, "bert_serving")]
        assert all(is_in(name, PEER_PROGRAMS) for name in ours), module


def test_of_the_programs_of_peers_only_the_conversation_is_imported() -> None:
    for module, names in imports().items():
        if not is_in(module, PEER_PROGRAMS):
            used = {name for name in names if is_in(name, PEER_PROGRAMS)}
            assert used <= {f"{PEER_PROGRAMS}.lines.Options"}, module


def test_ray_is_imported_only_by_the_cluster_and_nobody_imports_that() -> None:
    cluster = f"{SERVER}.cluster"
    for module, names in imports().items():
        if not is_in(module, cluster):
            assert "ray" not in top_levels(module), module
            assert not [name for name in names if is_in(name, cluster)], module


def test_tensorflow_is_imported_only_where_a_process_of_its_own_reads_with_it() -> None:
    users = {module for module in imports() if "tensorflow" in top_levels(module)}
    assert users == {f"{SERVER}.model.tensorflow_reader"}
    assert "torch" not in top_levels(f"{SERVER}.model.tensorflow_reader")


def test_web_packages_are_imported_only_by_the_http_gateway() -> None:
    for module in imports():
        if not is_in(module, f"{SERVER}.gateway.http"):
            assert not top_levels(module) & WEB, module


def test_importing_the_client_loads_only_its_three_dependencies() -> None:
    script = (
        "import sys; before = set(sys.modules)\n"
        "import bert_serving.client, bert_serving.client.protocol\n"
        "tops = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(*tops - sys.stdlib_module_names - {'bert_serving'})"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    loaded = {name for name in run.stdout.split() if "cython" not in name}
    assert {"msgpack", "numpy"} <= loaded <= THIRD_PARTY_OF_THE_CLIENT
