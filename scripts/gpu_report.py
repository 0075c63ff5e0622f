"""The tables of `gpu_benchmark`, in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---:"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def to_markdown(results: dict[str, Any]) -> str:
    parts = [
        f"# bench-gpu: {results['device']}",
        f"{results['versions']}; {results['date']}; `{results['arguments']}`",
    ]
    for name, found in results["models"].items():
        limit = max(found["limit_gflops"])
        parts += [
            f"## {name}, {found['model']['dtype']}, {found['max_batch_tokens']:,} tokens at a time",
            f"Best matrix product {limit:,.0f} GFLOP/s. Memory at most: "
            + ", ".join(f"{kind} {mb:,.0f} MB" for kind, mb in found["memory"].items()),
            "### Engine alone",
            table(
                ["tokens a row", "tokens/s", "best", "share of the product"],
                [
                    [
                        str(entry["length"]),
                        f"{entry['tokens_per_s']:,.0f}",
                        f"{entry['best_tokens_per_s']:,.0f}",
                        f"{entry['share']:.2f}",
                    ]
                    for entry in found["engine"]
                ],
            ),
            "### Small batches",
            _small_table(found),
            f"### End to end, processes of clients: {results['clients']}",
            table(
                ["workers", "tokens a row", "tokens/s"],
                [
                    [str(e["workers"]), str(e["length"]), f"{e['tokens_per_s']:,.0f}"]
                    for e in found["end to end"]
                ],
            ),
            "### Where the time goes",
        ]
        parts += [
            f"{entry['rows']} rows of {entry['length']} tokens, operations take "
            f"{entry['busy']:.2f} of the time:\n\n```\n{entry['table']}\n```"
            for entry in found["profile"]
        ]
    return "\n\n".join(parts) + "\n"


def _small_table(found: dict[str, Any]) -> str:
    titles = ["rows", "tokens a row", "ms"]
    rows = [[str(e["rows"]), str(e["length"]), f"{e['ms']:.2f}"] for e in found["small"]]
    if "small, no graphs" in found:
        titles.append("ms without graphs")
        for row, entry in zip(rows, found["small, no graphs"], strict=True):
            row.append(f"{entry['ms']:.2f}")
    return table(titles, rows)
