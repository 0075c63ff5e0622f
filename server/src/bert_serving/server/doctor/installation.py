"""Whether what is installed fits together: packages, libzmq, the compiled kernels."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata

import zmq

from bert_serving.server.version import __version__

from .finding import Finding, ok, problem, warning

PACKAGE = "bert-serving-server"


@dataclass(frozen=True)
class Requirement:
    """A package that the server needs.

    Attributes:
        name: of the package.
        wanted: the versions that will do, such as `>=2.8`.
        installed: the version that is there; None if it is not.
        fits: whether that will do.

    """

    name: str
    wanted: str
    installed: str | None
    fits: bool


def look_at_packages() -> list[Finding]:
    """Check the packages that the server needs."""
    return [judge_packages(platform.python_version(), requirements())]


def requirements() -> list[Requirement]:
    """Return what the installed server says it needs, and what there is of it."""
    from packaging.requirements import Requirement as Parsed  # what torch's friends bring along

    found = []
    for text in metadata.requires(PACKAGE) or []:
        parsed = Parsed(text)
        if parsed.marker is None or parsed.marker.evaluate({"extra": ""}):
            installed = _version(parsed.name)
            fits = installed is not None and parsed.specifier.contains(installed, prereleases=True)
            found.append(Requirement(parsed.name, str(parsed.specifier), installed, fits))
    return found


def judge_packages(python: str, needed: Sequence[Requirement]) -> Finding:
    """Return whether the packages are there in versions that fit."""
    wrong = [
        f"{package.name} {package.installed or 'is missing'} (needed: {package.wanted or 'any'})"
        for package in needed
        if not package.fits
    ]
    if wrong:
        advice = f"run pip install --upgrade {PACKAGE} in this environment"
        return problem("packages", "; ".join(wrong), advice)
    there = ", ".join(f"{package.name} {package.installed}" for package in needed)
    return ok("packages", f"Python {python}, {PACKAGE} {__version__}, {there}")


def look_at_libzmq() -> list[Finding]:
    """Check the messaging library."""
    return [judge_libzmq(zmq.zmq_version(), {name: zmq.has(name) for name in ("curve", "ipc")})]


def judge_libzmq(version: str, has: Mapping[str, bool]) -> Finding:
    """Return whether libzmq can do what the server uses it for."""
    if not has["ipc"]:
        advice = "install pyzmq's own wheel: pip install --force-reinstall pyzmq"
        return problem("libzmq", f"{version}, without local (ipc) sockets", advice)
    if not has["curve"]:
        advice = "to serve other machines encrypted, install pyzmq's own wheel"
        return warning("libzmq", f"{version}, without encryption (CURVE)", advice)
    return ok("libzmq", f"{version} with CURVE")


def look_at_kernels() -> list[Finding]:
    """Check whether the hand-written operations were compiled for this machine."""
    from bert_serving.server.model.inspection import kernel_levels  # here: it imports torch

    return [judge_kernels(*kernel_levels())]


def judge_kernels(levels: Sequence[str], loaded: str | None, error: str) -> Finding:
    """Return whether the best kernels are used.

    Args:
        levels: that this processor can run, the best first.
        loaded: the one that can be loaded; None if none can.
        error: why the others cannot.

    """
    rebuild = "install a C compiler and reinstall the server, so that its wheel is built here"
    if not levels:
        advice = "the server works, slower: it has kernels for x86 with AVX2, and for 64-bit ARM"
        return warning("kernels", "none for this processor", advice)
    if loaded is None:
        why = f": {error}" if error else ""
        return warning("kernels", f"not compiled for {levels[0]}: torch's own{why}", rebuild)
    if loaded != levels[0]:
        return warning("kernels", f"{loaded}, where this processor can {levels[0]}", rebuild)
    return ok("kernels", f"compiled for {loaded}")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
