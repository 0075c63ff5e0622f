"""What this machine gives a server: instructions, cores, descriptors, clocks."""

from __future__ import annotations

import os
import platform
import resource
import time
from collections.abc import Collection
from pathlib import Path

from bert_serving.server.cgroups import Cgroups

from .finding import Finding, ok, problem, warning

LEAST_DESCRIPTORS = 256
GOOD_DESCRIPTORS = 4096
CLOCK_LOOK_S = 0.05
EARLIEST_YEAR = 2025


def look_at_processor() -> list[Finding]:
    """Check which instructions the processor has."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    flags = next((line for line in lines if line.startswith("flags")), "")
    return [judge_processor(platform.machine(), set(flags.split()))]


def judge_processor(machine: str, flags: Collection[str]) -> Finding:
    """Return whether the processor has the instructions that make it fast."""
    if machine != "x86_64":
        return ok("processor", machine)
    names = {
        "avx2": "AVX2",
        "avx512f": "AVX-512",
        "avx512_vnni": "VNNI",
        "avx_vnni": "AVX-VNNI",
        "avx512_bf16": "bfloat16",
        "amx_tile": "AMX",
    }
    has = ", ".join(name for flag, name in names.items() if flag in flags)
    if "avx2" not in flags:
        advice = "use a newer processor, or have the virtual machine pass its instructions on"
        return warning("processor", f"{machine} without AVX2: slow", advice)
    if "avx512_bf16" not in flags and "amx_tile" not in flags:
        return ok("processor", f"{has}; no bfloat16: -dtype bfloat16 is no faster than float32")
    return ok("processor", has)


def look_at_cores() -> list[Finding]:
    """Check how many cores may be used."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    there = os.cpu_count() or 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return [judge_cores(there, allowed or there, Cgroups().cpu_quota(), load)]


def judge_cores(there: int, allowed: int, quota: float | None, load: float) -> Finding:
    """Return whether the cores that may be used can be.

    Args:
        there: cores of the machine.
        allowed: those this process may run on.
        quota: how many cores' worth of time its cgroup has; None for no limit.
        load: processes that want a core, on average of the last minute.

    """
    seen = f"{allowed} of {there} may be used, load {load:.1f}"
    if quota is not None and quota < allowed:
        advice = (
            f"lift the limit to have more than {max(int(quota), 1)} threads: those beyond it would "
            "be stopped for the rest of each period, which costs tens of milliseconds"
        )
        return warning("cores", f"{seen}, but only {quota:g} cores' worth of time", advice)
    if load > 1.5 * there:
        return warning("cores", seen, "end what else computes on this machine, or expect less")
    return ok("cores", seen)


def look_at_descriptors() -> list[Finding]:
    """Check how many files and connections a process may have open."""
    return [judge_descriptors(*resource.getrlimit(resource.RLIMIT_NOFILE))]


def judge_descriptors(soft: int, hard: int) -> Finding:
    """Return whether descriptors suffice; the server raises the soft limit to the hard one."""
    seen = f"{hard} descriptors a process (soft limit {soft})"
    if hard == resource.RLIM_INFINITY:
        return ok("descriptors", f"as many as wanted (soft limit {soft})")
    if hard < LEAST_DESCRIPTORS:
        return problem("descriptors", seen, f"allow at least {GOOD_DESCRIPTORS}: ulimit -n")
    if hard < GOOD_DESCRIPTORS:
        advice = f"for hundreds of clients allow {GOOD_DESCRIPTORS}: ulimit -n, or LimitNOFILE="
        return warning("descriptors", seen, advice)
    return ok("descriptors", seen)


def look_at_clock() -> list[Finding]:
    """Check whether time passes as it should."""
    started, at = time.monotonic(), time.time()
    time.sleep(CLOCK_LOOK_S)
    passed, by_calendar = time.monotonic() - started, time.time() - at
    return [judge_clock(time.gmtime(at).tm_year, passed, by_calendar)]


def judge_clock(year: int, passed: float, by_calendar: float) -> Finding:
    """Return whether two clocks agree on how long a moment was, and the year is possible."""
    if year < EARLIEST_YEAR:
        advice = "set the clock: the server does not mind, but its log and certificates do"
        return warning("clock", f"the year is {year}", advice)
    if abs(passed - by_calendar) > 0.02:
        advice = "see what sets the clock; the server measures with one that never jumps"
        return warning("clock", f"it moved {by_calendar:.2f} s in {passed:.2f} s", advice)
    return ok("clock", "steady")
