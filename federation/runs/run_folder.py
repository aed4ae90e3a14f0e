"""A run's folder, SERVER_DIR/runs/<run>/, and the note that its launch keeps there.

study.json     the study, as this run has it
run.json       the note: since when, of which group, Flower's number of it, how it ended
mlflow.json    where its figures are (`federation.runs.tracking`)
history.json, checkpoints/, release/, results.json: the server's app writes them (`federation.coordinator.server_app`)
"""

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from federation.protocol.study_config import Study
from federation.runs import reasons
from federation.superlink import reasons as superlink_reasons
from models.refusal import Refusal
from pipeline.system.atomic_files import write_durably

NOTE = "run.json"
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,59}")  # of a run and of a group

Ended = Literal["completed", "failed", "stopped"]


class RunNote(BaseModel, extra="forbid"):
    """run.json. `run_id` is 0 until the server has taken the run; `ended` is None while nobody saw it end.

    `server_start`: of the server's starts, the one that took it (`federation.server.start.this_start`).
    """

    begun: datetime
    group: str = ""
    run_id: int = 0
    server_start: str = ""
    ended: Ended | None = None


def run_names(server: Path) -> list[str]:
    """The runs of a server's folder, oldest first."""
    folders = [file.parent for file in (server / "runs").glob("*/study.json")]
    return [folder.name for folder in sorted(folders, key=lambda folder: (_begun(folder), folder.name))]


def find_run(server: Path, name: str) -> Path:
    """The folder of a run. Raises Refusal E_RUN_UNKNOWN, which names those that there are."""
    folder = server / "runs" / name
    if not NAME.fullmatch(name) or not (folder / "study.json").is_file():
        known = ", ".join(run_names(server)) or "none"
        raise Refusal(superlink_reasons.RUN_UNKNOWN, private=f"runs in {server}: {known}")
    return folder


def read_study(folder: Path) -> Study:
    """The study of a run. Raises Refusal E_RUN_FILES."""
    try:
        return Study.model_validate_json((folder / "study.json").read_bytes())
    except (OSError, ValidationError) as error:
        raise Refusal(reasons.RUN_FILES, file="study.json", private=f"{folder}: {error}") from error


def read_history(folder: Path) -> list[dict[str, Any]]:
    """What the server wrote of each round and of the end; nothing before the first. Raises Refusal E_RUN_FILES."""
    try:
        return list(json.loads((folder / "history.json").read_text()))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise Refusal(reasons.RUN_FILES, file="history.json", private=f"{folder}: {error}") from error


def read_note(folder: Path) -> RunNote:
    """The note of a run; of one that an older release launched, what its files tell. Raises Refusal E_RUN_FILES."""
    try:
        return RunNote.model_validate_json((folder / NOTE).read_bytes())
    except FileNotFoundError:
        ended: Ended | None = "completed" if (folder / "release").is_dir() else None
        return RunNote(begun=_written(folder), ended=ended)
    except (OSError, ValidationError) as error:
        raise Refusal(reasons.RUN_FILES, file=NOTE, private=f"{folder}: {error}") from error


def write_note(folder: Path, note: RunNote) -> None:
    write_durably(folder / NOTE, note.model_dump_json(indent=1).encode())


def _begun(folder: Path) -> datetime:
    """When a run began, as near as its files tell."""
    try:
        return read_note(folder).begun
    except Refusal:
        return _written(folder)


def _written(folder: Path) -> datetime:
    study = folder / "study.json"
    return datetime.fromtimestamp((study if study.exists() else folder).stat().st_mtime, UTC)
