"""What a check has found."""

from __future__ import annotations

from dataclasses import dataclass

OK, WARNING, PROBLEM = "ok", "warning", "problem"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        subject: what it is about, in a word or two.
        level: `ok`; `warning`: it works, but not as well as it might; `problem`: it does not.
        seen: what was seen, in one line.
        advice: what to do about it; empty if it is ok.

    """

    subject: str
    level: str
    seen: str
    advice: str = ""


def ok(subject: str, seen: str) -> Finding:
    """Return that all is well."""
    return Finding(subject, OK, seen)


def warning(subject: str, seen: str, advice: str) -> Finding:
    """Return that something could be better."""
    return Finding(subject, WARNING, seen, advice)


def problem(subject: str, seen: str, advice: str) -> Finding:
    """Return that something does not work."""
    return Finding(subject, PROBLEM, seen, advice)
