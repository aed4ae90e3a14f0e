"""`fedthorax score`: find the model, score, print, write the page."""

import json
from collections.abc import Sequence
from pathlib import Path

from federation.commands.console import print_json, print_table, say
from models.release import load_release
from pipeline.report import write_report
from pipeline.score import score


def score_series(series: Sequence[Path], *, model: Path, out: Path | None, as_json: bool) -> None:
    """Score one series and show the answer; with `out`, write score.json and score.html there.

    Raises Refusal: what `load_release` and `score` raise.
    """
    release = load_release(model)
    result = score(series[0] if len(series) == 1 else series, release)
    content = result.to_json()
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "score.json").write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
        page = write_report(result, out)
    if as_json:
        print_json(content)
        return
    print_table(["", "probability"], [[label, f"{100 * p:.1f} %"] for label, p in result.probabilities.items()])
    print_table(["check", "value", "verdict"], [[c.name, str(c.value), c.verdict] for c in result.checks])
    say(content["notice"])
    if out is not None:
        say(f"Page: {page}")
