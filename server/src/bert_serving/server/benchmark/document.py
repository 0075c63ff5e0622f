"""A document that several runs make together: each writes sections, and replaces its own.

A section stands between two comments that name it, so that what people write around the
sections stays. Pure.
"""

from __future__ import annotations

import re

HEAD = """\
# Benchmarks

The sections below are made by `bert-serving-benchmark` with `-document`: run its command again,
and the section is replaced. Figures of different sections are of different runs: only what
stands in one table was measured side by side.
"""


_MARK = re.compile(r"<!-- (begin|end): (.*?) -->")


def put_section(document: str, name: str, heading: str, text: str) -> str:
    """Return a document with a section in it: in its old place, or at the end.

    Args:
        document: what there is; empty for a new one.
        name: of the section, on one line; the same one is replaced.
        heading: of the section.
        text: what it says, in Markdown.

    Raises:
        ValueError: a section of the document has no end.

    """
    check_sections(document)
    begin, end = (f"<!-- {word}: {_in_comment(name)} -->" for word in ("begin", "end"))
    section = f"{begin}\n\n## {heading}\n\n{text.strip()}\n\n{end}"
    old = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if old.search(document):
        return old.sub(lambda _: section, document, count=1)
    return f"{(document or HEAD).rstrip()}\n\n{section}\n"


def check_sections(document: str) -> None:
    """Raise ValueError if a section has no end: what follows might be anybody's."""
    begun = None
    for word, name in _MARK.findall(document):
        if word == "begin" and begun is not None:
            break
        if word == "begin":
            begun = name
        elif name == begun:
            begun = None
    if begun is not None:
        raise ValueError(f"the section {begun!r} has no end: put <!-- end: {begun} --> behind it")


def file_name(name: str) -> str:
    """Return a name for a section's files: small letters, digits, dots, hyphens."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.")


def _in_comment(name: str) -> str:
    return " ".join(name.replace("--", "-").split())
