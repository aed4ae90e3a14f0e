"""A run's folder, SERVER_DIR/runs/<run>/, and the note (run.json) that the launch keeps in it.

study.json     the study's settings in this run
run.json       the note: start time, group, Flower's run id, how the run ended
mlflow.json    where its metrics are (`federation.runs.tracking`)
failure.json   why it ended, of a run that failed (`federation.runs.failure`)
history.json, checkpoints/, release/, results.json: written by the ServerApp (`federation.coordinator.server_app`)
"""

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, FiniteFloat, TypeAdapter, ValidationError

from federation.protocol.study_config import Study
from federation.runs import reasons
from federation.superlink import reasons as superlink_reasons
from federation.superlink.control import read_server_config
from models.refusal import Refusal
from pipeline.system.atomic_files import write_durably

NOTE = "run.json"
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,59}")  # the name of a run or of a group

_HISTORY = TypeAdapter(list[dict[str, Any]])

Ended = Literal["completed", "failed", "stopped"]


class _Entry(BaseModel, extra="allow"):
    """What readers expect of an entry of a history, beside what it may have from other versions."""

    sites: list[str] = []
    refused: dict[str, str] = {}
    capped: list[str] = []
    clipped: list[str] = []
    versions: dict[str, str] = {}
    ledger: dict[str, Any] = {}
    means: dict[str, float] = {}


class _Round(_Entry):
    """What readers expect of an entry that describes a round (`progress.rounds_of`)."""

    round: int
    lost: bool
    lost_for: str | None
    sites: list[str]
    means: dict[str, float]
    seconds: FiniteFloat
    bytes_up: FiniteFloat
    bytes_down: FiniteFloat
    epsilon: dict[str, float] = {}


class RunNote(BaseModel, extra="forbid"):
    """The content of run.json.

    `run_id` is 0 until the server has accepted the run. `ended` is None until the end was recorded. `server_start`
    identifies the start of the server that accepted it (`federation.server.start.this_start`).
    """

    begun: datetime
    group: str = ""
    run_id: int = 0
    server_start: str = ""
    ended: Ended | None = None


def unfinished(server: Path) -> list[str]:
    """Return the names of the runs that are not recorded as complete, oldest first. Raises Refusal E_RUN_FILES."""
    return [name for name in run_names(server) if read_note(server / "runs" / name).ended != "completed"]


def run_names(server: Path) -> list[str]:
    """Return the names of the runs in a server's folder, oldest first."""
    folders = [file.parent for file in (server / "runs").glob("*/study.json")]
    return [folder.name for folder in sorted(folders, key=lambda folder: (_begun(folder), folder.name))]


def require_server(server: Path) -> None:
    """Raise Refusal as `read_server_config`, such as E_NO_SERVER, if a folder has no runs and is no new server."""
    if not (server / "runs").is_dir():
        read_server_config(server)


def find_run(server: Path, name: str) -> Path:
    """Return the folder of a run.

    Raises Refusal E_RUN_UNKNOWN, which lists the existing runs, and those of `require_server`.
    """
    require_server(server)
    folder = server / "runs" / name
    if not NAME.fullmatch(name) or not (folder / "study.json").is_file():
        known = ", ".join(run_names(server)) or "none"
        raise Refusal(superlink_reasons.RUN_UNKNOWN, private=f"runs in {server}: {known}")
    return folder


def read_study(folder: Path) -> Study:
    """Read the study of a run. Raises Refusal E_RUN_FILES."""
    try:
        return Study.model_validate_json((folder / "study.json").read_bytes())
    except (OSError, ValidationError) as error:
        raise Refusal(reasons.RUN_FILES, file="study.json", private=f"{folder}: {error}") from error


def read_history(folder: Path) -> list[dict[str, Any]]:
    """Read the history of a run, which is empty before the first round. Raises Refusal E_RUN_FILES."""
    try:
        history = _HISTORY.validate_json((folder / "history.json").read_bytes())
        check_history(history)
        return history
    except FileNotFoundError:
        return []
    except (OSError, ValidationError) as error:
        raise Refusal(reasons.RUN_FILES, file="history.json", private=f"{folder}: {error}") from error


def check_history(history: Iterable[Mapping[str, Any]]) -> None:
    """Raise ValidationError if an entry lacks what its readers use, or has it as another kind of value."""
    for entry in history:
        (_Round if "round" in entry and "lost" in entry else _Entry).model_validate(entry)


def read_note(folder: Path) -> RunNote:
    """Read a run's note; for a run of an older release, derive it from its files. Raises Refusal E_RUN_FILES."""
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
    """Estimate from its files when a run started."""
    try:
        return read_note(folder).begun
    except Refusal:
        return _written(folder)


def _written(folder: Path) -> datetime:
    study = folder / "study.json"
    return datetime.fromtimestamp((study if study.exists() else folder).stat().st_mtime, UTC)
