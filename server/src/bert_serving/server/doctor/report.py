"""How findings are told: a table for people, JSON for machines.

JSON: `{"version": 1, "ok": bool, "findings": [{"subject", "level", "seen", "advice"}]}`; all
strings, `level` one of `ok`, `warning`, `problem`. Later versions may add keys.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from .finding import OK, PROBLEM, WARNING, Finding

SUBJECT_WIDTH = 16
VERSION = 1


def has_problem(findings: Sequence[Finding]) -> bool:
    """Whether something does not work."""
    return any(finding.level == PROBLEM for finding in findings)


def as_line(finding: Finding) -> str:
    """Return a finding for people, with what to do in a line of its own."""
    line = f"{finding.level:<8} {finding.subject:<{SUBJECT_WIDTH}} {finding.seen}"
    return f"{line}\n{'':<{SUBJECT_WIDTH + 9}} → {finding.advice}" if finding.advice else line


def summary(findings: Sequence[Finding]) -> str:
    """Return how many there are of each level."""
    counts = {level: sum(found.level == level for found in findings) for level in (OK, WARNING, PROBLEM)}  # fmt: skip  # noqa: E501
    return f"{counts[OK]} ok, {counts[WARNING]} warnings, {counts[PROBLEM]} problems"


def as_json(findings: Sequence[Finding]) -> str:
    """Return findings for machines."""
    listed = [asdict(finding) for finding in findings]
    whole = {"version": VERSION, "ok": not has_problem(findings), "findings": listed}
    return json.dumps(whole, indent=2)
