"""Export a study's server to one file, and mark the server as moved."""

import hashlib
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import BinaryIO

from federation.enrolment.certificates import host_names, open_authority, write_new
from federation.migration import archive, experiments, reasons
from federation.migration.age_file import SealingWriter, require_length
from federation.migration.archive import Manifest, Progress
from federation.migration.common import FOLDERS, ROSTER, Bar, Moved, contents_of, files_can_be_used, opened, roster_of
from federation.protocol.masked_replies import SUMMED_OVER
from federation.runs import reasons as runs_reasons
from federation.runs.run_folder import read_study
from federation.runs.tracking import hand_over_rest, tracking_uri
from federation.runs.tracking_queue import SPOOL
from federation.superlink.control import EXPORTING, MOVED, ca_certificate, read_server_config
from federation.system.process import LOOPBACK, port_is_taken
from models.refusal import Refusal
from pipeline.system.atomic_files import sync_folder, write_durably
from pipeline.system.sqlite_format import copy_all
from pipeline.system.work_folder import work_folder

_EXPORTING = """\
An export of this server began on {date}. It is in progress, or it was killed. This server does not start meanwhile.
The archive: {archive}
If the export was killed and there never was such an archive, nothing has moved. Delete this file. Then this server can
start, or be exported again.
An archive of this name is complete. Rename this file to MOVED if the archive was imported or will be. Otherwise delete
the archive, then this file.
"""
_MOVED = """\
This server was exported on {date} to {archive}. Its study continues on another server, so this one does not start.
If the archive was not imported and never will be, delete this file. Then this server can start again.
"""
_AUTHORITY = ("ca.crt", "ca.key")


def export_server(
    folder: Path, file: Path, *, passphrase: str | None = None, say: Callable[[str], None], bar: Bar
) -> Moved:
    """Write everything that the server in `folder` needs to one file, and mark the server as moved.

    The server must be stopped. The archive has mode 0600 and contains the authority's key; with a `passphrase` it is
    encrypted. It is read back before it gets its final name. After a Refusal there is no archive, and the server is
    unchanged.

    Raises Refusal: E_NO_SERVER, E_SERVER_MOVED, E_EXPORT_UNFINISHED, E_SERVER_RUNS, E_AUTHORITY, E_ARCHIVE_EXISTS,
    E_ARCHIVE_NAME, E_PASSPHRASE, E_MOVE_LINK, E_MOVE_WRITE, E_MLFLOW_SILENT, E_MLFLOW_SOURCE, E_SERVER_DATABASE,
    E_RUN_FILES; E_ARCHIVE_DAMAGED if what is read back differs.
    """
    if passphrase is not None:
        require_length(passphrase)
    config = read_server_config(folder)
    if port_is_taken(LOOPBACK, config.control_port):
        raise Refusal(reasons.SERVER_RUNS, port=config.control_port)
    certificates = ca_certificate(folder).parent
    open_authority(certificates)
    if os.path.lexists(file):
        raise Refusal(reasons.ARCHIVE_EXISTS, private=str(file))
    with (
        files_can_be_used(),
        work_folder(file) as work,
        _handed_over(folder, written := work / "archive", file),
    ):
        with bar("MLflow, runs") as progress:
            found = _experiments(folder, work / "mlflow", say, progress)
        sources = _sources(folder, work)
        with bar("reading, MiB") as progress:
            files = archive.entries(sources, progress)
        manifest = Manifest(
            software=f"fedthorax {version('fedthorax')}",
            made=datetime.now(UTC).isoformat(timespec="seconds"),
            hosts=host_names(certificates / "server.crt"),
            address=config.address,
            port=config.port,
            contents=contents_of(work / ROSTER, folder / "runs", found),
            files=files,
        )
        with bar("writing, MiB") as progress:
            sha256 = _write(written, manifest, sources, passphrase, progress)
        with bar("reading back, MiB") as progress, opened(written, passphrase) as stream:
            archive.unpack(stream, None, progress)
        size = written.stat().st_size
    return Moved(sha256, size, config.address, manifest.contents)


@contextmanager
def _handed_over(folder: Path, written: Path, file: Path) -> Iterator[None]:
    """Prevent starts and changes of the server during the block; then give the archive its name and mark the server.

    The mark that the server has moved is made only when the archive has its name. Another one is on the disk before and
    until then, so a kill or a power cut never leaves an archive of a server that can start.
    """
    exporting, moved = folder / EXPORTING, folder / MOVED
    about = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "archive": file.absolute()}
    write_new(exporting, _EXPORTING.format(**about).encode(), mode=0o600)
    is_written = False
    try:
        sync_folder(exporting)
        sync_folder(folder)
        yield
        is_written = True
        written.replace(file)
        sync_folder(file.parent)
        write_durably(moved, _MOVED.format(**about).encode())
        exporting.unlink()
        sync_folder(folder)
    except BaseException:
        if is_written and not written.exists():  # first the archive: as long as it is there, a mark is there
            file.unlink(missing_ok=True)
            sync_folder(file.parent)
        for mark in (moved, exporting):
            mark.unlink(missing_ok=True)
        raise


def _experiments(
    folder: Path, work: Path, say: Callable[[str], None], progress: Progress
) -> list[experiments.Experiment]:
    """Write the experiments of the server's studies to `work`, after the runs' queued data was uploaded to MLflow."""
    names = {read_study(path.parent).study.name for path in (folder / "runs").glob("*/study.json")}
    if not names:
        return []
    with experiments.answering():
        hand_over_rest(folder, say)
        if any((folder / "runs").glob(f"*/{SPOOL}")):
            raise Refusal(runs_reasons.MLFLOW_SILENT)
        client = experiments.connect(tracking_uri(folder.resolve()))
        found = [each for name in sorted(names) if (each := experiments.read_experiment(client, name, progress))]
        for each in found:
            experiments.save_experiment(client, each, work / each.name)
    return found


def _sources(folder: Path, work: Path) -> dict[str, Path]:
    """Return the archive's files by their paths in it. A consistent copy of the roster is written to `work`."""
    sources = {f"certificates/{name}": ca_certificate(folder).with_name(name) for name in _AUTHORITY}
    with roster_of(folder / ROSTER) as old, closing(sqlite3.connect(work / ROSTER)) as new:
        copy_all(old, new)
    sources[ROSTER] = work / ROSTER
    if (folder / SUMMED_OVER).exists():
        sources[SUMMED_OVER] = folder / SUMMED_OVER
    for top, below in (*((name, folder / name) for name in FOLDERS), ("mlflow", work / "mlflow")):
        for path in below.rglob("*"):
            if path.is_symlink() or not (path.is_dir() or path.is_file()):
                raise Refusal(reasons.MOVE_LINK, private=str(path))
            if path.is_file() and path.suffix != ".tmp":  # a temporary file of a process that was killed while it wrote
                sources[f"{top}/{path.relative_to(below)}"] = path
    return sources


def _write(
    path: Path, manifest: Manifest, sources: Mapping[str, Path], passphrase: str | None, progress: Progress
) -> str:
    """Write the archive, encrypted if there is a passphrase; return its SHA-256."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        hashed = _HashingWriter(file)
        if passphrase is not None:
            sealing = SealingWriter(hashed, passphrase)
            archive.pack(sealing, manifest, sources, progress)
            sealing.close()
        else:
            archive.pack(hashed, manifest, sources, progress)
        file.flush()
        os.fsync(file.fileno())
    return hashed.sha256.hexdigest()


class _HashingWriter:
    """Writes to another file and computes the SHA-256."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes, /) -> int:
        self.sha256.update(data)
        return self._out.write(data)
