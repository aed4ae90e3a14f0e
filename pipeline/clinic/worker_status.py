"""The status that the scoring process reports; the page and the metrics show it."""

from pipeline.clinic.database import Database
from pipeline.clinic.records import WorkerState


class WorkerStatus:
    """The last reported state of the scoring process."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def set(self, state: WorkerState, code: str | None = None) -> None:
        """Set the state. `code`: why there is no model, or why it cannot be loaded."""
        with self._database.transaction() as db:
            db.execute("INSERT OR REPLACE INTO worker VALUES (1, ?, ?)", (state, code))

    def get(self) -> tuple[WorkerState, str | None]:
        """Return what `set` set last."""
        row = self._database.row("SELECT state, code FROM worker")
        return (row["state"], row["code"]) if row else ("starting", None)
