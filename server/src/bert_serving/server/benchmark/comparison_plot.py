"""The picture of a comparison: a bar a contender, beside each other for several workloads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .comparison import BULK
from .comparison_report import title
from .comparison_results import Comparison, Entry, WorkloadResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OURS, OTHERS, EXCLUDED = "#1f5fa8", "0.72", "#e8d0c4"


def draw(comparison: Comparison, path: Path) -> None:
    """Write the picture: sentences a second, least to most over rounds as a line."""
    from matplotlib.figure import Figure  # without pyplot: no display is ever looked for

    labels = _labels(comparison)
    count = len(comparison.workloads)
    figure = Figure(figsize=(5.5 + 2.3 * count, 1.6 + 0.34 * len(labels)), layout="constrained")
    figure.suptitle(title(comparison), x=0.01, ha="left", weight="bold")
    figure.supxlabel(
        f"sentences/s: median, least to most of {comparison.rounds}\n{comparison.machine}",
        x=0.01,
        ha="left",
        fontsize=8,
        color="0.35",
    )
    panels = figure.subplots(1, count, sharey=True, squeeze=False)[0]
    for axes, workload in zip(panels, comparison.workloads, strict=True):
        _bars(axes, comparison, workload, labels)
    panels[0].set_yticks(range(len(labels)), labels, fontsize=8)
    panels[0].invert_yaxis()
    figure.savefig(path, dpi=120)


def _labels(comparison: Comparison) -> list[str]:
    """Return every contender, the fastest of the first workload before the others."""
    entries = [
        entry
        for workload in comparison.workloads
        for entry in sorted(workload.entries, key=lambda entry: -entry.rows_per_s.middle)
    ]
    return list(dict.fromkeys(entry.label(comparison.num_layers) for entry in entries))


def _bars(axes: Axes, comparison: Comparison, workload: WorkloadResult, labels: list[str]) -> None:
    measured = [entry for entry in workload.entries if entry.seconds]
    places = [labels.index(entry.label(comparison.num_layers)) for entry in measured]
    spreads = [entry.rows_per_s for entry in measured]
    axes.barh(
        places,
        [spread.middle for spread in spreads],
        xerr=(
            [spread.middle - spread.least for spread in spreads],
            [spread.most - spread.middle for spread in spreads],
        ),
        color=[_colour(entry) for entry in measured],
        error_kw={"elinewidth": 1, "ecolor": "0.3"},
    )
    for place, spread in zip(places, spreads, strict=True):
        rate = spread.middle
        axes.annotate(
            f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}",
            (spread.most, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    mean = f", {workload.tokens:.1f} tokens on average" if comparison.kind == BULK else ""
    axes.set_title(f"{workload.name}{mean}", fontsize=9)
    axes.set_xlim(0, max((spread.most for spread in spreads), default=0) * 1.3 or 1)
    axes.xaxis.set_major_formatter(lambda rate, _: f"{rate:,g}")
    axes.xaxis.set_tick_params(labelsize=8)
    axes.grid(visible=True, axis="x", color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _colour(entry: Entry) -> str:
    if entry.excluded:
        return EXCLUDED
    return OURS if entry.is_ours else OTHERS
