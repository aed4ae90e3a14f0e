"""Why a run ended before it was complete: failure.json in the run's folder, which the ServerApp writes.

A run that was resumed has no such file until it fails again. A run whose process was killed has none either.
"""

from pathlib import Path

from pydantic import BaseModel, ValidationError

from models.refusal import Refusal
from pipeline.system.atomic_files import write_durably

FAILURE = "failure.json"


class Failure(BaseModel):
    """The refusal that ended a run, without what only the server's own log may show."""

    code: str
    says: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.code}: {self.says}. {self.remedy}"


def write_failure(folder: Path, refusal: Refusal) -> None:
    write_durably(folder / FAILURE, Failure(**refusal.to_json()).model_dump_json(indent=1).encode())


def clear_failure(folder: Path) -> None:
    """Forget why the run ended earlier: it goes on."""
    (folder / FAILURE).unlink(missing_ok=True)


def read_failure(folder: Path) -> Failure | None:
    """Return why the run ended; None if this is not known, as of a run of an earlier version."""
    try:
        return Failure.model_validate_json((folder / FAILURE).read_bytes())
    except (OSError, ValidationError):
        return None
