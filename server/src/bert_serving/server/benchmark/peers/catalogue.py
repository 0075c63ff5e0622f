"""Which peers there are, what `-peer NAME=WHERE` means, and whether one is installed."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

FIND_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class KnownPeer:
    """A system that can be compared with.

    Attributes:
        name: as it is typed, and in reports.
        packages: what is typed behind `pip install`.
        modules: what must be importable in its interpreter; none for one that is a server
            somewhere, known by its address.
        dtypes: those that it is measured in; `default` is whatever it chooses.

    """

    name: str
    packages: str
    modules: tuple[str, ...]
    dtypes: tuple[str, ...]

    @property
    def program(self) -> str:
        """The name of the module in `programs` that speaks for it."""
        return f"{self.name.replace('-', '_')}_peer"


PEERS = (
    KnownPeer("transformers", "torch transformers", ("torch", "transformers"), ("float32",)),
    KnownPeer(
        "sentence-transformers",
        "sentence-transformers",
        ("sentence_transformers",),
        ("float32", "bfloat16"),
    ),
    KnownPeer(
        "onnxruntime",
        "torch transformers onnx onnxruntime",
        ("onnxruntime", "onnx", "transformers"),
        ("float32", "int8"),
    ),
    KnownPeer(
        "openvino",
        "torch transformers openvino",
        ("openvino", "transformers"),
        ("float32", "default"),
    ),
    KnownPeer(
        "infinity",
        "'infinity-emb[torch,server]==0.0.77', and then click==8.1.8 typer==0.15.4",
        ("infinity_emb",),
        ("float32",),
    ),
    KnownPeer("bert-as-service", "", (), ("float32",)),
)
NAMES = tuple(peer.name for peer in PEERS)


@dataclass(frozen=True)
class PeerChoice:
    """A peer that was asked for.

    Attributes:
        peer: which.
        python: the interpreter that has it.
        address: of its server, HOST:PORT:PORT_OUT, for one that is known by that.

    """

    peer: KnownPeer
    python: str
    address: str | None = None


def parse_peer(text: str) -> PeerChoice:
    """Return the peer that is named by NAME, NAME=PYTHON, NAME=VENV or NAME=ADDRESS.

    Raises:
        ValueError: it cannot be meant; the message says what can.

    """
    name, _, where = text.partition("=")
    found = [peer for peer in PEERS if peer.name == name]
    if not found:
        raise ValueError(f"{name!r} is no known peer: expected one of {', '.join(NAMES)}")
    (peer,) = found
    if not peer.modules:
        return PeerChoice(peer, sys.executable, _address(peer, where))
    return PeerChoice(peer, _interpreter(where) if where else sys.executable)


def default_choices() -> tuple[PeerChoice, ...]:
    """Return all peers that need no address, in this interpreter."""
    return tuple(PeerChoice(peer, sys.executable) for peer in PEERS if peer.modules)


def what_is_missing(choice: PeerChoice) -> str | None:
    """Return why a peer cannot be run, and what to type; None if it is installed."""
    missing = [name for name in choice.peer.modules if not _has(choice.python, name)]
    if not missing:
        return None
    python = "this Python" if choice.python == sys.executable else choice.python
    return (
        f"{choice.peer.name} is left out: {python} has no {', '.join(missing)}. In a venv "
        f"of its own: pip install {choice.peer.packages}; then -peer {choice.peer.name}=VENV"
    )


def _address(peer: KnownPeer, where: str) -> str:
    host, *ports = where.rsplit(":", 2)
    if not host or len(ports) != 2 or not all(port.isdecimal() for port in ports):
        raise ValueError(
            f"{where!r} is no address: expected {peer.name}=HOST:PORT:PORT_OUT, as in "
            f"{peer.name}=localhost:5555:5556, of a server that is up"
        )
    return where


def _interpreter(where: str) -> str:
    path = Path(where).expanduser()
    if path.is_dir():
        path = path / "bin" / "python"
    if not path.is_file():
        raise ValueError(f"{where!r}: expected a Python interpreter, or the folder of a venv")
    return str(path.absolute())  # not resolved: a venv's interpreter is known by its link


def _has(python: str, module: str) -> bool:
    if python == sys.executable:
        return find_spec(module) is not None
    script = f"import importlib.util as u, sys; sys.exit(u.find_spec({module!r}) is None)"
    try:
        found = subprocess.run(  # noqa: S603  # the interpreter that the user named
            [python, "-c", script], capture_output=True, timeout=FIND_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return found.returncode == 0
