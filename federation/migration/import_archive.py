"""Import a study's server from an archive: verified, and created completely or not at all."""

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from federation.enrolment.certificates import alternative_names, open_authority
from federation.enrolment.invitations import publish_revocations
from federation.migration import archive, experiments, mlflow_restore, reasons
from federation.migration.archive import Progress
from federation.migration.common import FOLDERS, ROSTER, Bar, Moved, contents_of, files_can_be_used, opened, roster_of
from federation.protocol.masked_replies import SUMMED_OVER
from federation.runs.run_folder import NOTE, read_note, read_study, write_note
from federation.runs.tracking import WHERE, Where, artifact_place, read_where, tracking_uri, without_user
from federation.server.start import init_server
from federation.superlink import reasons as superlink_reasons
from federation.superlink.control import IMPORTING, ServerConfig
from models.refusal import Refusal
from models.settings import load_settings
from pipeline.system.atomic_files import write_durably


def import_server(
    file: Path,
    folder: Path,
    *,
    hosts: Sequence[str] = (),
    port: int | None = None,
    passphrase: str | None = None,
    bar: Bar,
) -> Moved:
    """Create a server in `folder` that continues where the exported one stopped.

    `folder` must be empty or missing. `hosts` and `port` are those of `init_server`; without hosts the sites connect to
    the same name as before. Every byte is verified before anything is written. After a Refusal the folder is unchanged,
    and MLflow contains nothing of the study.

    Raises Refusal: E_ARCHIVE_READ, E_PASSPHRASE, E_ARCHIVE_FORMAT, E_MOVE_PATH, E_ARCHIVE_DAMAGED, E_IMPORT_FOLDER,
    E_IMPORT_UNFINISHED, E_AUTHORITY, E_HOST_NAME, E_MLFLOW_SILENT, E_MLFLOW_TAKEN, E_MOVE_LOST, E_MOVE_WRITE,
    E_SERVER_DATABASE, E_RUN_FILES.
    """
    alternative_names(hosts)  # detect a wrong value early
    with files_can_be_used():
        with bar("checking, MiB") as progress, opened(file, passphrase) as stream:
            archive.unpack(stream, None, progress)
        with file.open("rb") as whole:
            sha256 = hashlib.file_digest(whole, "sha256").hexdigest()
        with _filling(folder) as work:
            with bar("unpacking, MiB") as progress, opened(file, passphrase) as stream:
                manifest = archive.unpack(stream, work, progress)
            authority = open_authority(work / "certificates")
            found = mlflow_restore.load_experiments(work / "mlflow")
            (work / "runs").mkdir(exist_ok=True)
            (work / ROSTER).rename(folder / ROSTER)
            for name in (SUMMED_OVER, *FOLDERS):
                if (work / name).exists():
                    (work / name).rename(folder / name)
            _forget_flower(folder / "runs")
            with bar("MLflow, runs") as progress, _restored(folder.resolve(), found, work / "mlflow", progress) as made:
                _note_mlflow(folder / "runs", tracking_uri(folder.resolve()), made)
                init_server(
                    folder,
                    hosts=hosts or manifest.hosts,
                    port=port or manifest.port,
                    authority=authority,
                    address="" if hosts or port else manifest.address,
                )
                with roster_of(folder / ROSTER) as db:
                    publish_revocations(db, folder / "certificates")
                contents = contents_of(folder / ROSTER, folder / "runs", found)
                if contents != manifest.contents:
                    raise Refusal(reasons.MOVE_LOST, what="runs or roster")
                # Not `read_server_config`, which refuses a folder whose import is not finished.
                address = load_settings(folder / "server.toml", ServerConfig).address
    return Moved(sha256, file.stat().st_size, address, contents)


@contextmanager
def _filling(folder: Path) -> Iterator[Path]:
    """Make a working folder in the empty `folder`. If the block fails, `folder` is restored."""
    was_there = folder.is_dir()
    work = folder / IMPORTING
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        work.mkdir(mode=0o700)
    except FileExistsError as error:
        raise Refusal(superlink_reasons.IMPORT_UNFINISHED if work.exists() else reasons.IMPORT_FOLDER) from error
    if list(folder.iterdir()) != [work]:
        work.rmdir()
        raise Refusal(reasons.IMPORT_FOLDER, private=str(folder))
    try:
        yield work
        os.sync()  # write to disk first: without the mark, all files must exist even after a power failure
        shutil.rmtree(work)
    except BaseException:
        for each in sorted(folder.iterdir(), key=lambda each: each == work):  # remove the mark last
            shutil.rmtree(each) if each.is_dir() else each.unlink()
        if not was_there:
            folder.rmdir()
        raise


def _forget_flower(runs: Path) -> None:
    """Reset Flower's run ids of the old server, which are not valid on the new one."""
    for note in runs.glob(f"*/{NOTE}"):
        write_note(note.parent, read_note(note.parent).model_copy(update={"run_id": 0}))


@contextmanager
def _restored(
    folder: Path, found: Sequence[experiments.Experiment], work: Path, progress: Progress
) -> Iterator[mlflow_restore.Restored]:
    """Write the experiments to the new server's MLflow, unless both servers share it. `folder` is absolute."""
    if not found:
        yield mlflow_restore.Restored()
        return
    uri = tracking_uri(folder)
    place = artifact_place(folder, uri)
    with experiments.answering():
        client = experiments.connect(uri)
        missing = [each for each in found if not mlflow_restore.is_there(client, each)]
        with mlflow_restore.restoring(client, missing, work, place, progress) as made:
            yield made


def _note_mlflow(runs: Path, uri: str, made: mlflow_restore.Restored) -> None:
    """Update each run's record of where its metrics are."""
    for note in runs.glob(f"*/{WHERE}"):
        old = read_where(note.parent)
        if old and old.run in made.runs:
            name = read_study(note.parent).study.name
            now = Where(uri=without_user(uri), experiment=made.experiments[name], run=made.runs[old.run])
            write_durably(note, now.model_dump_json().encode())
