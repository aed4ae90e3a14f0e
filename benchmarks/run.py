"""`make bench`: the cost of our code relative to the bare libraries, as ratios within one run, and what it learns.

    python benchmarks/run.py                      all parts
    python benchmarks/run.py reading training     these parts

Each part writes benchmarks/results/PART.json; bench.md there shows all parts that were run. All data is synthetic.
Results are valid only on an idle machine: the load before each part is recorded.
"""

import argparse
import json
import os
import platform
import tempfile
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from common import Figure, Part, spread

PARTS = (
    "reading",
    "ingestion",
    "pull",
    "training",
    "gateway",
    "secure_aggregation",
    "masked_rounds",
    "rounds",
    "server",
    "overhead",
    "scoring",
    "startup",
    "learning_short",
)
ALONE = ("hundred", "clinic_day", "learning")  # take half an hour to four hours: run only if they are named
RESULTS = Path(__file__).with_name("results")
VERSIONS = ("torch", "numpy", "pydicom", "monai", "itk", "simpleitk")


def circumstances() -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "load_before": round(os.getloadavg()[0], 2),
        "versions": {name: _version(name) for name in VERSIONS},
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # from the extra `bench`, which most parts do not need
        return "not installed"


def as_json(figure: Figure) -> dict[str, Any]:
    least_median_most = {
        whose: [float(f"{value:.4g}") for value in spread(values)]
        for whose, values in (("ours", figure.ours), ("theirs", figure.theirs))
    }
    ratio = {"ratio": round(figure.ratio, 3), "target": figure.target, "repeats": len(figure.ours)}
    return {"name": figure.name, "against": figure.against, "unit": figure.unit, **least_median_most, **ratio}


def table(part: str, result: dict[str, Any]) -> str:
    """Format one part as Markdown."""

    def cell(values: list[float]) -> str:
        least, median, most = (f"{value:.4g}" for value in values)
        return f"{median} ({least} to {most})"

    rows = [
        [f["name"], f["unit"], cell(f["ours"]), f["against"], cell(f["theirs"]), f"**{f['ratio']:.2f}**", f["target"]]
        for f in result["figures"]
    ]
    head = ["what", "unit", "ours", "against", "theirs", "ours / theirs", "target"]
    made = f"{result['date']}; {result['machine']}; load {result['load_before']} before."
    lines = [f"## {part}", "", made, *result["notes"], "", *(markdown(head, rows) if rows else [])]
    for other in result.get("tables", []):
        lines += [f"{other['title']}:", "", *markdown(other["head"], other["rows"])]
    return "\n".join(lines)


def markdown(head: list[str], rows: list[list[str]]) -> list[str]:
    """Return the lines of a table, followed by an empty line."""
    return [*(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)), ""]


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure parts of fedthorax in comparison with the bare libraries.")
    named = f"parts to run: {', '.join(PARTS)} (default: all of these); or {', '.join(ALONE)}"
    parser.add_argument("parts", nargs="*", metavar="PART", help=named)
    parts = parser.parse_args().parts or PARTS
    if unknown := set(parts).difference(PARTS, ALONE):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    for part in parts:
        before = circumstances()
        with tempfile.TemporaryDirectory() as folder:
            measured: Part = import_module(part).measure(Path(folder))
        print(table(part, store(part, measured, before)), flush=True)


def as_stored(measured: Part, before: dict[str, Any]) -> dict[str, Any]:
    """Return a part's results as they are stored; `before`: the circumstances before it ran."""
    result = {**before, "notes": measured.notes, "figures": [as_json(figure) for figure in measured.figures]}
    return result | {"tables": [asdict(each) for each in measured.tables], "values": measured.values}


def store(part: str, measured: Part, before: dict[str, Any]) -> dict[str, Any]:
    """Write the results of a part and the page of all parts; return the results."""
    RESULTS.mkdir(exist_ok=True)
    result = as_stored(measured, before)
    (RESULTS / f"{part}.json").write_text(json.dumps(result, indent=1) + "\n")
    files = {part: RESULTS / f"{part}.json" for part in (*PARTS, *ALONE)}
    tables = [table(part, json.loads(file.read_text())) for part, file in files.items() if file.is_file()]
    intro = "# Benchmarks\n\nMedians with minimum and maximum. The scripts in benchmarks/ explain each figure.\n"
    (RESULTS / "bench.md").write_text("\n".join([intro, *tables]))
    return result


if __name__ == "__main__":
    main()
