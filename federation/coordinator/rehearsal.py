"""Execute a whole run in this process on site folders of this machine, for fast notebooks and tests.

It uses the server's own run and the app's own answers, and gives the same weights as a simulation. Flower's processes
are left out, so their failures cannot be tested here. `study run --simulate` includes them.
"""

import logging
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

from federation.coordinator.eager_grid import EagerGrid
from federation.protocol.first_weights import bring_encoder, bring_release
from federation.protocol.study_config import Study
from federation.protocol.study_packages import bring_packages
from federation.runs.run_folder import RunNote, write_note


def rehearse(study: Study, server: Path, folders: Sequence[Path], *, group: str = "") -> Path:
    """Run a study in this process over site folders of this machine.

    Weights are the same as on a server. Flower's processes are not started.

    Parameters
    ----------
    study : Study
        The study's settings.
    server : Path
        The server's folder, absolute or relative to the current folder; the run is written below it.
    folders : sequence of Path
        The sites' folders, with their cohorts.
    group : str
        Runs with the same group belong together (`compare`).

    Returns
    -------
    Path
        The run's folder, absolute, as a server would have left it; `read_results` reads it.

    Raises
    ------
    Refusal
        Those of a run, of `bring_release`, of `bring_encoder` and of `bring_packages`.
    """
    from federation.coordinator.inprocess import InProcessGrid, playing
    from federation.coordinator.server_app import ServerRun

    server = server.resolve()  # MLflow's place of artifacts must be absolute
    name = f"{study.study.name}-{secrets.token_hex(4)}"
    run = server / "runs" / name
    bring_encoder(study, server, run)
    bring_release(study, server, run)
    bring_packages(study, run)
    run.mkdir(parents=True, exist_ok=True)
    (server / "server.toml").write_text(f"# A rehearsal.\nport = 1\nsimulated_sites = {len(folders)}\n")
    begun = RunNote(begun=datetime.now(UTC), group=group)
    write_note(run, begun)
    (run / "study.json").write_text(study.model_dump_json(indent=1))
    grid = InProcessGrid(study, folders, name)
    with playing(folders), _without_progress():
        ServerRun(server, study, name, cast(EagerGrid, grid)).execute()
    write_note(run, begun.model_copy(update={"ended": "completed"}))
    return run


@contextmanager
def _without_progress() -> Iterator[None]:
    """Leave out the progress lines of Flower and MLflow during the block; warnings and the sites' refusals stay.

    The run's history and results hold the same facts. In a notebook the lines would fill the cell.
    """
    import mlflow  # noqa: F401  # when it is imported it sets the level of its log, so that must happen before

    loggers = [logging.getLogger(name) for name in ("flwr", "mlflow", "alembic")]
    levels = [log.level for log in loggers]
    for log in loggers:
        log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for log, level in zip(loggers, levels, strict=True):
            log.setLevel(level)
