"""What a backup of a site, a study's server or a clinic contains; federation.system.backup writes and reads it."""

import os
from collections.abc import Iterator
from pathlib import Path

from federation.ledger.chain import Ledger, ledger_file
from federation.ledger.restored import mark_restored
from federation.protocol.package_files import PACKAGES
from federation.protocol.release_files import BEGINS_FROM, ENCODERS
from federation.superlink.control import IMPORTING, read_server_config
from federation.system.backup import restore_backup, write_backup
from pipeline.clinic.database import FILE
from pipeline.clinic.service import LOCK
from pipeline.clinic.settings import Clinic
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

    Raises Refusal: E_BACKUP_EXISTS, E_BACKUP_LINK, and those of `Site.open`; OSError.
    """
    site = Site.open(folder)
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
    E_NO_SERVER, E_SERVER_MOVED, E_IMPORT_UNFINISHED; OSError.
    """
    read_server_config(folder)
    parts = sorted(path for path in folder.iterdir() if path.name not in _NOT_OF_SERVER)
    return write_backup("server", folder, parts, file)


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
