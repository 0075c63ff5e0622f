"""A comparison in words: lines for the terminal, and a section of Markdown. Pure.

It says of every contender which layers it computes: ours stop at the deepest layer that is
asked for, and others compute the last one too.
"""

from __future__ import annotations

from collections.abc import Sequence

from .comparison import BULK
from .comparison_results import AGAINST, Comparison, Entry, Ratio, WorkloadResult
from .measurement import Spread

JSON, MARKDOWN = "comparison.json", "comparison.md"
NONE, HOW = "-", "how"

TITLES = {BULK: "Bulk, mixed lengths", "lengths": "Rows of equal length"}


def title(comparison: Comparison) -> str:
    """Return the heading of its section."""
    return f"{TITLES[comparison.kind]}: {comparison.model}"


def round_line(number: int, workload: WorkloadResult) -> str:
    """Return what a round gave, for the terminal: nothing of who did not come so far."""
    rates = (
        f"{entry.rates[number - 1]:,.0f}" if len(entry.seconds) >= number else NONE
        for entry in workload.entries
    )
    return f"  round {number}: {', '.join(rates)} sentences/s"


def workload_lines(comparison: Comparison, workload: WorkloadResult) -> list[str]:
    """Return the table of a workload, for the terminal."""
    rows = [_entry_cells(comparison, workload, entry) for entry in _by_speed(workload)]
    widths = [max(len(row[place]) for row in [ENTRY_TITLES, *rows]) for place in range(6)]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(row[1:6], widths[1:], strict=True)]
        )
        for row in [ENTRY_TITLES, *rows]
    ]
    ratios = [
        f"{ours.label(comparison.num_layers)}: {words}"
        for ours in workload.ours
        for words in dict.fromkeys(
            _ratio_words(comparison, ratio) for _, ratio in _ratios(workload, ours) if ratio
        )
    ]
    return [f"\n{workload.name}, {workload.tokens:.1f} tokens on average", *lines, *ratios]


def to_markdown(comparison: Comparison) -> str:
    """Return its section, without the heading."""
    parts = []
    if comparison.ended:
        parts.append(f"**{comparison.ended}**: what follows is what was measured until then.")
    parts.append(_facts(comparison))
    if comparison.picture:
        parts.append(f"![{title(comparison)}]({comparison.picture})")
    if len(comparison.workloads) == 1:
        parts.extend(_single(comparison, comparison.workloads[0]))
    elif comparison.workloads:
        parts.extend(_many(comparison))
    parts.append(_legend(comparison))
    return "\n\n".join(parts)


ENTRY_TITLES = [
    "contender",
    "sentences/s",
    "min to max",
    "tokens/s",
    "share",
    "cosine",
    "rows",
    HOW,
]


def _entry_cells(comparison: Comparison, workload: WorkloadResult, entry: Entry) -> list[str]:
    spread, share = entry.rows_per_s, comparison.share(workload, entry)
    return [
        entry.label(comparison.num_layers),
        _number(spread.middle),
        f"{_number(spread.least)} to {_number(spread.most)}",
        _number(workload.tokens_per_s(entry)),
        NONE if share is None else f"{share:.2f}",
        NONE if entry.cosine is None else f"{entry.cosine:.6f}",
        f"{entry.rows:,}",
        "; ".join(filter(None, (f"version {entry.version}", entry.settings, _excluded(entry)))),
    ]


def _excluded(entry: Entry) -> str:
    return f"**not compared: {entry.excluded}**" if entry.excluded else ""


def _single(comparison: Comparison, workload: WorkloadResult) -> list[str]:
    rows = [_entry_cells(comparison, workload, entry) for entry in _by_speed(workload)]
    ratios = [
        [
            ours.label(comparison.num_layers),
            *(_ratio_words(comparison, ratio) for _, ratio in _ratios(workload, ours)),
        ]
        for ours in workload.ours
    ]
    return [
        f"{workload.tokens:.1f} tokens a sentence on average.",
        _table(ENTRY_TITLES, rows),
        _table(["ours over", *AGAINST], ratios),
    ]


def _many(comparison: Comparison) -> list[str]:
    """Return a table of rates, one of shares, and one of ratios, with a column a workload."""
    names = [workload.name for workload in comparison.workloads]
    by_label = _by_label(comparison)
    rates = [
        [label, *(_number(e.rows_per_s.middle) if e else NONE for e in entries)]
        for label, entries in by_label.items()
    ]
    shares = [[label, *_shares(comparison, entries)] for label, entries in by_label.items()]
    ratios = [
        [f"{label} over {name}", *cells]
        for label in dict.fromkeys(
            ours.label(comparison.num_layers)
            for workload in comparison.workloads
            for ours in workload.ours
        )
        for name, cells in _ratio_rows(comparison, label)
    ]
    return [
        "Sentences a second, medians:",
        _table(["contender", *names], rates),
        "Useful FLOPs over the best matrix product in the type:",
        _table(["contender", *names], shares),
        _table(["ours over", *names], ratios),
        "\n".join(f"- {label}: {_how(entries)}" for label, entries in by_label.items()),
    ]


def _by_label(comparison: Comparison) -> dict[str, list[Entry | None]]:
    """Return the entries of each contender, one a workload, those fast at first before."""
    labels = [
        entry.label(comparison.num_layers)
        for workload in comparison.workloads
        for entry in _by_speed(workload)
    ]
    made: dict[str, list[Entry | None]] = {label: [] for label in labels}
    for workload in comparison.workloads:
        here = {entry.label(comparison.num_layers): entry for entry in workload.entries}
        for label, entries in made.items():
            entries.append(here.get(label))
    return made


def _shares(comparison: Comparison, entries: Sequence[Entry | None]) -> list[str]:
    shares = [
        None if entry is None else comparison.share(workload, entry)
        for workload, entry in zip(comparison.workloads, entries, strict=True)
    ]
    return [NONE if share is None else f"{share:.2f}" for share in shares]


def _how(of_workloads: Sequence[Entry | None]) -> str:
    entries = [entry for entry in of_workloads if entry is not None]
    cosines = [entry.cosine for entry in entries if entry.cosine is not None]
    cosine = f"cosine to ours {min(cosines):.6f}" if cosines else ""
    settings = " / ".join(dict.fromkeys(entry.settings for entry in entries if entry.settings))
    excluded = dict.fromkeys(_excluded(entry) for entry in entries if entry.excluded)
    return "; ".join(filter(None, (f"version {entries[0].version}", settings, cosine, *excluded)))


def _ratio_rows(comparison: Comparison, label: str) -> list[tuple[str, list[str]]]:
    rows: dict[str, list[str]] = {name: [] for name in AGAINST}
    for workload in comparison.workloads:
        own = [ours for ours in workload.ours if ours.label(comparison.num_layers) == label]
        found = dict(_ratios(workload, own[0])) if own else {}
        for name, cells in rows.items():
            cells.append(_ratio_words(comparison, found.get(name), brief=True))
    return [(name, cells) for name, cells in rows.items() if set(cells) != {NONE}]


def _ratios(workload: WorkloadResult, ours: Entry) -> list[tuple[str, Ratio | None]]:
    return [(name, workload.against_best(ours, **asked)) for name, asked in AGAINST.items()]


def _ratio_words(comparison: Comparison, ratio: Ratio | None, *, brief: bool = False) -> str:
    if ratio is None:
        return NONE
    spread: Spread = ratio.ratio
    if brief:
        return f"{spread.middle:.2f} ({ratio.over.name}, {ratio.over.dtype})"
    over = ratio.over.label(comparison.num_layers)
    return f"{spread.middle:.2f} ({spread.least:.2f} to {spread.most:.2f}) over {over}"


def _facts(comparison: Comparison) -> str:
    environment = " ".join(f"{name}={value}" for name, value in comparison.environment.items())
    products = ", ".join(f"{dtype}: {product}" for dtype, product in comparison.products.items())
    facts = {
        "date": comparison.date,
        "machine": str(comparison.machine),
        "limit": products or "not measured",
        "versions": ", ".join(f"{name} {text}" for name, text in comparison.versions.items()),
        "command": f"`{comparison.command}`",
        "environment": f"`{environment}`" if environment else "no settings in it",
    }
    lines = [f"- {name}: {text}" for name, text in facts.items()]
    return "\n".join([*lines, *(f"- {reason}" for reason in comparison.left_out)])


def _legend(comparison: Comparison) -> str:
    rounds = "1 round" if comparison.rounds == 1 else f"{comparison.rounds} rounds"
    return f"""\
- All in turn, {rounds}, about {comparison.seconds:g} s a measurement: medians, least to most.
- Ours go through a server and a client of their own, on the same CPU cores; the others are called
  in their own process, and infinity and bert-as-service over their wire, with the fastest
  settings that were found.
- layers: how many of the model's each computes. `equal layers` compares only those that compute
  as many.
- share: FLOPs on real tokens, of the layers that are computed, over those of the machine's best
  matrix product in the same type and run. Above 1, others used the machine when it was measured.
- cosine: the least one to what our server gives for the same texts and the same layer, in the
  most exact type that was measured.
- Ratios are medians over rounds."""


def _by_speed(workload: WorkloadResult) -> list[Entry]:
    return sorted(workload.entries, key=lambda entry: -entry.rows_per_s.middle)


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    texts = (titles[0], HOW)
    places = ["---" if name in texts else "---:" for name in titles]
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (titles, places, *rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
