"""Writes the files of runs with invented metrics, without a server."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from federation.protocol.study_config import Study
from federation.runs.results import RESULTS, Results
from federation.runs.run_folder import Ended, RunNote, write_note

BEGUN = datetime(2026, 3, 1, 8, tzinfo=UTC)


def study(**table: Any) -> Study:
    return Study.model_validate(
        {"study": {"name": "trial", "rounds": 4, "sites": 2, "quorum": 1, "synthetic": True} | table}
    )


def entry(number: int, **changes: Any) -> dict[str, Any]:
    """Return one round of a run's history."""
    return {
        "round": number,
        "lost": False,
        "lost_for": None,
        "sites": ["north", "south"],
        "refused": {},
        "capped": [],
        "means": {"train_loss": 0.8 / number, "auroc_severe": 0.6 + number / 20},
        "seconds": 30.0,
        "bytes_up": 1_500_000,
        "bytes_down": 1_600_000,
    } | changes


def write_run(
    server: Path,
    name: str,
    *,
    number: int = 0,
    of: Study | None = None,
    history: list[dict[str, Any]] | None = None,
    ended: Ended | None = "completed",
    group: str = "",
    run_id: int = 0,
    results: Results | None = None,
) -> Path:
    """Write the folder of a run in a server folder. `number`: order by start time."""
    folder = server / "runs" / name
    folder.mkdir(parents=True)
    (folder / "study.json").write_text((of or study()).model_dump_json())
    write_note(folder, RunNote(begun=BEGUN + timedelta(hours=number), group=group, run_id=run_id, ended=ended))
    if history is not None:
        (folder / "history.json").write_text(json.dumps(history))
    if results:
        (folder / RESULTS).write_text(results.model_dump_json())
    return folder
