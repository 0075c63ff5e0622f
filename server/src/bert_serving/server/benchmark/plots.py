"""A picture an experiment. Only here is matplotlib imported, and only when one is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from .measurement import Latency, Measurement
from .report import ExperimentResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ADVICE = "no pictures: pip install 'bert-serving-server[benchmark]' for matplotlib"

AXES = {
    "client_batch_size": "sentences a call (client_batch_size)",
    "num_client": "clients at once (num_client)",
    "pooling_layer": "hidden layer (pooling_layer; -1 is the last)",
    "mixed": "clients of one sentence a call (mixed)",
    "overhead": "words of the sentence (overhead)",
    "num_worker": "workers (num_worker)",
    "max_batch_size": "rows a worker takes at a time, at most (max_batch_size)",
    "max_seq_len": "tokens a row (max_seq_len)",
}
THROUGHPUT, LATENCY, ERRORS = "#1f5fa8", "#b4531f", "#c01c28"

# a factor between largest and smallest beyond which a linear axis hides the small ones
_WIDE = 16


def can_draw() -> bool:
    """Return whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def draw(result: ExperimentResult, machine: str, path: Path) -> None:
    """Write a picture: throughput above, latency below, over the values of the variable."""
    from matplotlib.figure import Figure  # without pyplot: no display is ever looked for

    figure = Figure(figsize=(8, 6.5), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    figure.suptitle(f"{result.model['name']}: {result.name}", x=0.01, ha="left", weight="bold")
    caption = f"{result.model_words}\n{result.load}\n{machine}"
    figure.supxlabel(caption, x=0.01, ha="left", fontsize=8, color="0.35")
    measurements = sorted(result.measurements, key=lambda measurement: measurement.value)
    if result.label:
        _labelled(top, bottom, measurements)
    else:
        _throughput(top, measurements)
        _latency(bottom, measurements)
    _value_axis(bottom, list(dict.fromkeys(measurement.value for measurement in measurements)))
    bottom.set_xlabel(AXES.get(result.name, result.name))
    figure.savefig(path, dpi=120)


def _throughput(axes: Axes, measurements: Sequence[Measurement]) -> None:
    answered = [m for m in measurements if m.latency_ms is not None]
    values, rates = [m.value for m in answered], [m.rows_per_s.middle for m in answered]
    below = [m.rows_per_s.middle - m.rows_per_s.least for m in answered]
    above = [m.rows_per_s.most - m.rows_per_s.middle for m in answered]
    axes.errorbar(
        *(values, rates, (below, above)),
        fmt="o-",
        color=THROUGHPUT,
        capsize=4,
        elinewidth=1,
        label="all clients: median, min to max",
    )
    for value, rate in zip(values, rates, strict=True):
        axes.annotate(
            f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}",
            *((value, rate),),
            xytext=(7, 7),
            textcoords="offset points",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 1},
            fontsize=8,
        )
    _errors(axes, [m for m in measurements if m.errors])
    axes.set_ylabel("sentences/s")
    axes.set_ylim(0, max((m.rows_per_s.most for m in answered), default=0) * 1.25 or 1)
    axes.margins(x=0.08)
    _finish(axes)


def _labelled(top: Axes, bottom: Axes, measurements: Sequence[Measurement]) -> None:
    """Draw a line a label: throughput above, p50 and p99 below."""
    answered = [(m, m.latency_ms) for m in measurements if m.latency_ms is not None]
    for label in dict.fromkeys(m.label for m, _ in answered):
        own = [(m, latency) for m, latency in answered if m.label == label]
        values = [m.value for m, _ in own]
        (line,) = top.plot(values, [m.rows_per_s.middle for m, _ in own], "o-", label=label)
        for name, style in (("p50", "o-"), ("p99", "^:")):
            heights = [_percentile(latency, name) for _, latency in own]
            bottom.plot(values, heights, style, color=line.get_color(), label=f"{label}: {name}")
    _errors(top, [m for m in measurements if m.errors])
    top.set_ylabel("sentences/s")
    top.set_ylim(bottom=0)
    bottom.set_ylabel("latency of a call [ms]")
    if answered:
        _latency_axis(bottom, [latency for _, latency in answered])
        _finish(top)
        _finish(bottom)


def _errors(axes: Axes, failed: Sequence[Measurement]) -> None:
    if failed:
        axes.plot(
            *([m.value for m in failed], [m.rows_per_s.middle for m in failed], "x"),
            color=ERRORS,
            markersize=11,
            markeredgewidth=2,
            clip_on=False,
            zorder=3,
            label="with errors: see the table",
        )


def _latency(axes: Axes, measurements: Sequence[Measurement]) -> None:
    answered = [(m.value, m.latency_ms) for m in measurements if m.latency_ms is not None]
    axes.set_ylabel("latency of a call [ms]")
    if not answered:
        axes.text(0.5, 0.5, "no call was answered", transform=axes.transAxes, ha="center")
        return
    values = [value for value, _ in answered]
    for name, style, alpha in (("p50", "o-", 1.0), ("p95", "s--", 0.7), ("p99", "^:", 0.5)):
        heights = [_percentile(latency, name) for _, latency in answered]
        axes.plot(values, heights, style, color=LATENCY, alpha=alpha, markersize=5, label=name)
    _latency_axis(axes, [latency for _, latency in answered])
    _finish(axes)


def _latency_axis(axes: Axes, latencies: Sequence[Latency]) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    every = [_percentile(latency, name) for latency in latencies for name in ("p50", "p99")]
    if max(every) > _WIDE * min(every):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.set_ylim(0, max(every) * 1.15)


def _percentile(latency: Latency, name: str) -> float:
    return float(getattr(latency, name))


def _finish(axes: Axes) -> None:
    axes.grid(visible=True, color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)
    axes.yaxis.set_major_formatter(lambda height, _: f"{height:,g}")


def _value_axis(axes: Axes, values: Sequence[int]) -> None:
    """Show exactly the values, at equal distances where they double."""
    if values[0] > 0 and values[-1] >= 4 * values[0]:
        axes.set_xscale("log", base=2)
    axes.set_xticks(values, [str(value) for value in values])
    axes.minorticks_off()
