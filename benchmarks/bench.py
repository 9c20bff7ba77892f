"""One table of ratios: `scripts/bench [--only NAMES] [--json FILE] [--markdown]`"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import rows_backtest, rows_data, rows_features, rows_runs, rows_tuning
from benchmarks.measure import FULL, ROWS, TINY, figures, machine, timings

SOURCES = (rows_features, rows_backtest, rows_data, rows_runs, rows_tuning)  # importing them registers their rows


def duration(seconds: float) -> str:
    "Three digits and a unit"
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size or unit == "µs":
            return f"{seconds / size:.3g} {unit}" if seconds < 1000 * size else f"{seconds / size:,.0f} {unit}"
    raise AssertionError


def ratio_text(case: dict[str, Any]) -> str:
    "How many times our time a case takes; for a bound, how many times the bound we take"
    if case["kind"] == "bound":
        return f"ours is {1 / case['ratio']:.2g}× this"
    return f"{case['ratio']:,.3g}×" if case["ratio"] < 1000 else f"{case['ratio']:,.0f}×"


def target_text(case: dict[str, Any]) -> str:
    "The target and whether it is reached"
    if not case["bar"]:
        return ""
    goal = f"≥ {case['bar']:,g}×" + (f", one day {case['moonshot']:,g}×" if case["moonshot"] else "")
    return f"{goal}: {case['verdict']}"


def case_cells(case: dict[str, Any]) -> tuple[str, ...]:
    scaled = f", scaled ×{case['scale']:,.4g}" if case["scale"] != 1 else ""
    times = f"{duration(case['min'])} / {duration(case['median'])}"
    return case["name"] + scaled, times, str(case["runs"]), ratio_text(case), target_text(case)


HEADINGS = ("case", "min / median", "runs", "of our median", "target")


def headline(about: dict[str, Any]) -> str:
    "Date, machine and versions in a sentence"
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items() if number != "not installed")
    return (
        f"{about['date']}, {about['cpu']}, {about['cores']} cores, {about['system']}, Python {about['python']}, "
        f"load {about['load']} at the start; {versions}"
    )


def rich_tables(found: dict[str, Any]) -> Iterator[Any]:
    "A table for each row, under its work and what was checked; the machine at the end"
    for row in found["rows"].values():
        checks = "\n".join(f"✓ {check}" for check in row["checks"])
        table = Table(title=row["work"], caption=checks, title_justify="left", caption_justify="left")
        for heading, width in zip(HEADINGS, (45, 19, 4, 16, 14), strict=True):
            table.add_column(heading, justify="left" if heading in ("case", "target") else "right", min_width=width)
        for case in row["cases"]:
            table.add_row(
                *case_cells(case), style="bold" if case["kind"] == "ours" else "dim" if case["kind"] == "bound" else ""
            )
        yield table
    yield headline(found["machine"])


def markdown(found: dict[str, Any]) -> str:
    "The same table for a README"
    lines = [headline(found["machine"]) + ".", "", "| work | " + " | ".join(HEADINGS) + " |", "|---" * 6 + "|"]
    for row in found["rows"].values():
        for number, case in enumerate(row["cases"]):
            lines.append(f"| {'' if number else row['work']} | " + " | ".join(case_cells(case)) + " |")
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    said = argparse.ArgumentParser(prog="scripts/bench", description="Measure ours and the peers side by side.")
    said.add_argument("--only", metavar="NAMES", default=",".join(ROWS), help="rows, separated by commas")
    said.add_argument("--json", metavar="FILE", help="write the figures there; - for standard output")
    said.add_argument("--markdown", action="store_true", help="print Markdown instead of the table")
    said.add_argument("--repeat", type=int, default=15, help="measurements of each case, at most (default 15)")
    said.add_argument("--budget", type=float, default=20.0, help="seconds for each case, roughly (default 20)")
    said.add_argument("--tiny", action="store_true", help="small sizes: tries everything, the ratios mean nothing")
    said.add_argument("--list", action="store_true", help="name the rows and stop")
    return said


def main(arguments: list[str] | None = None) -> int:
    "The command"
    said = parser().parse_args(arguments)
    out, err = Console(), Console(stderr=True)
    out.width = max(out.width, 140)
    if said.list:
        for name, build in ROWS.items():
            print(f"{name:10} {(build.__doc__ or '').strip().splitlines()[0]}")
        return 0
    names = [name.strip() for name in said.only.split(",") if name.strip()]
    if unknown := [name for name in names if name not in ROWS]:
        print(f"--only {', '.join(unknown)}: unknown; there are {', '.join(ROWS)}", file=sys.stderr)
        return 2
    found: dict[str, Any] = {"machine": machine(), "rows": {}}
    differ = 0
    for name in names:
        try:
            with err.status(f"{name}: preparing and checking"):
                row = ROWS[name](TINY if said.tiny else FULL)
        except AssertionError as error:  # nothing is timed where the results differ
            err.print(f"{name}: left out, the results differ: {' '.join(str(error).split())[:300]}", markup=False)
            differ += 1
            continue
        with err.status(f"{name}: measuring"):
            found["rows"][name] = figures(row, timings(row, said.repeat, said.budget))
    if said.json == "-":
        print(json.dumps(found, indent=1, ensure_ascii=False))
        return int(differ > 0)
    if said.json:
        Path(said.json).write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if said.markdown:
        print(markdown(found))
    else:
        for part in rich_tables(found):
            out.print(part, end="\n\n")
    return int(differ > 0)


if __name__ == "__main__":
    raise SystemExit(main())
