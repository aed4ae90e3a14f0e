"""What a backup of a site, a study's server or a clinic contains; federation.system.backup writes and reads it."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from federation.enrolment.invitations import end_codes
from federation.ledger.chain import Ledger, ledger_file
from federation.ledger.restored import mark_restored
from federation.migration.common import ROSTER, roster_of
from federation.protocol.package_files import PACKAGES
from federation.protocol.release_files import BEGINS_FROM, ENCODERS
from federation.superlink.control import IMPORTING, read_server_config
from federation.system.backup import restore_backup, write_backup
from models.refusal import Refusal
from pipeline.clinic.database import FILE
from pipeline.clinic.reasons import CLINIC_FILE
from pipeline.clinic.settings import LOCK, Clinic
from pipeline.feeds.result_queue import listener_of
from pipeline.site.folder import Site
from pipeline.site.withdrawn import FILE as WITHDRAWN
from pipeline.system.folder_format import FILE as FORMAT_FILE
from pipeline.system.sqlite_format import copies

# Not the cohort, the fetched series and the logs: `node ingest` makes the first two again.
_SITE_FOLDERS = ("keys", "ledger", "apps", "studies", "peers", PACKAGES, BEGINS_FROM, ENCODERS, "privacy")
# Of gateway/ what it remembers, not the data of the current task.
_GATEWAY_PARTS = ("answers", "models", "votes", "secagg", "rounds.json", "private.json")
_MADE_AGAIN = ("check.html",)
# Files that fedthorax itself makes beside site.toml. They grow with the site, so no limit of their size applies.
_MADE_HERE = ("site.toml", FORMAT_FILE, WITHDRAWN)
_MAX_BESIDE_BYTES = 2**20  # passwords, tokens and certificates beside site.toml are short; exports are not
# What Flower and the running processes make anew at the next start.
_NOT_OF_SERVER = ("flower_home", "logs", "started", "state.db", "state.db-wal", "state.db-shm", IMPORTING)
_NOT_OF_CLINIC = ("logs", "received", "work", LOCK)


def back_up_site(folder: Path, file: Path) -> int:
    """Back up what a site cannot make again to a new private file; return the number of files.

    Raises Refusal: E_SITE_KEY, E_BACKUP_EXISTS, E_BACKUP_LINK, and those of `Site.open`; OSError.
    """
    site = Site.open(folder)
    keys = site.folder / "keys"
    if not any(path.is_symlink() and not path.exists() for path in (keys, keys / "pseudonym.key")):
        # A backup without it would be useless, and replace older ones. Of a broken link `write_backup` says more.
        site.pseudonym("")
    return write_backup("site", site.folder, sorted(_site_parts(site)), file)


def left_out_of_site(folder: Path) -> list[Path]:
    """Return the files beside site.toml that a backup of the site leaves out because of their size.

    Raises Refusal: those of `Site.open`; OSError.
    """
    site = Site.open(folder)
    kept = set(_site_parts(site))
    return sorted(path for path in _beside(site) if path not in kept)


def restore_site(file: Path, folder: Path) -> int:
    """Restore a site's backup to an empty or missing folder; return the number of files.

    The ledger says that it was restored, and the gateway takes part in nothing until the hospital accepts this: the
    backup knows nothing of the answers that left after it. Raises Refusal: those of `restore_backup`, `Site.open` and
    `mark_restored`; OSError.
    """
    return restore_backup("site", file, folder, _mark_site)


def _mark_site(folder: Path) -> None:
    ledger = ledger_file(Site.open(folder))
    mark_restored(ledger, f"a backup whose ledger has {Ledger(ledger).head.lines} lines")


def _site_parts(site: Site) -> Iterator[Path]:
    yield from (site.folder / name for name in _SITE_FOLDERS if (site.folder / name).is_dir())
    yield from (path for name in _GATEWAY_PARTS if (path := site.folder / "gateway" / name).exists())
    yield from (path for path in _beside(site) if path.name in _MADE_HERE or path.stat().st_size <= _MAX_BESIDE_BYTES)
    yield from _broken_links(site)  # which `write_backup` refuses
    yield from (path for path in _named_files(site) if path.is_relative_to(site.folder))
    listener = listener_of(site)
    if listener and listener.queue.is_relative_to(site.folder) and listener.queue.is_dir():
        yield listener.queue  # an acknowledged message is nowhere else


def _beside(site: Site) -> Iterator[Path]:
    """Yield the files beside site.toml, without those that are made again."""
    yield from (path for path in site.folder.iterdir() if path.is_file() and path.name not in _MADE_AGAIN)


def _broken_links(site: Site) -> Iterator[Path]:
    yield from (path for path in site.folder.iterdir() if path.is_symlink() and not path.exists())


def _named_files(site: Site) -> Iterator[Path]:
    """Yield the files with passwords, tokens, keys and certificates that site.toml names."""
    yield site.ca_certificate
    pacs = site.settings.pacs
    for table in (
        *((pacs.dicomweb, pacs.dimse) if pacs else ()),
        listener_of(site),
        site.settings.fhir,
        site.settings.omop,
    ):
        for value in table.model_dump().values() if table else ():
            # Not resolved: a link in the folder is in the backup, whatever place it leads to.
            if isinstance(value, Path) and (path := Path(os.path.abspath(site.folder / value))).is_file():  # noqa: PTH100
                yield path


def back_up_server(folder: Path, file: Path) -> int:
    """Back up a study's server, with its keys, runs and releases, to a new private file; return the number of files.

    Left out: logs, and Flower's database, which is made again. Raises Refusal: E_BACKUP_EXISTS, E_BACKUP_LINK,
    E_NO_SERVER, E_SERVER_MOVED, E_EXPORT_UNFINISHED, E_IMPORT_UNFINISHED; OSError.
    """
    read_server_config(folder)
    parts = sorted(path for path in folder.iterdir() if path.name not in _NOT_OF_SERVER)
    return write_backup("server", folder, parts, file)


def restore_server(file: Path, folder: Path) -> tuple[int, list[str]]:
    """Restore a server's backup to an empty or missing folder; return the number of files, and whose codes ended.

    The backup does not know which enrolment codes were used after it: all open ones end, or another node could join
    with a copy of one. Raises Refusal: those of `restore_backup`, `read_server_config` and `roster_of`; OSError.
    """
    ended: list[str] = []

    def finish(restored: Path) -> None:
        read_server_config(restored)
        if (restored / ROSTER).exists():
            with roster_of(restored / ROSTER) as db:
                ended.extend(end_codes(db))

    return restore_backup("server", file, folder, finish), ended


def back_up_clinic(folder: Path, file: Path) -> int:
    """Back up a clinic to a new private file; return the number of files.

    The database comes first: an answer's files are on the disk before its row, so the backup has the files of each
    answer. Left out: logs, scans that wait or are scored, and copies of the database from before an upgrade. Scans that
    are kept with their answers (`uploads = true`) are in it. Raises Refusal: E_BACKUP_EXISTS, E_BACKUP_LINK,
    and those of `Clinic.open`; OSError.
    """
    clinic = Clinic.open(folder)
    database = clinic.folder / FILE
    left_out = {database, *copies(database).values(), *(clinic.folder / name for name in _NOT_OF_CLINIC)}
    if not clinic.settings.keep.uploads:
        left_out.add(clinic.scans)
    beside = sorted(path for path in clinic.folder.iterdir() if path not in left_out)
    return write_backup("clinic", clinic.folder, [database, *beside], file)


def restore_clinic(file: Path, folder: Path) -> int:
    """Restore a clinic's backup to an empty or missing folder; return the number of files.

    The backup does not know which sessions ended after it: all of them end. Raises Refusal: those of `restore_backup`
    and `Clinic.open`, E_CLINIC_FILE; OSError.
    """
    return restore_backup("clinic", file, folder, _end_sessions)


def _end_sessions(folder: Path) -> None:
    """End all sessions in a clinic's database without migrating it: an older version may be meant to use it."""
    database = Clinic.open(folder).folder / FILE
    if not database.exists():
        return
    try:
        with closing(sqlite3.connect(database, isolation_level=None)) as db:
            if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'sessions'").fetchone():
                db.execute("DELETE FROM sessions")
    except sqlite3.DatabaseError as error:
        raise Refusal(CLINIC_FILE, private=str(error)) from error
