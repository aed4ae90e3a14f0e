"""End a node for good: delete all data of patients and all keys, and keep the proof of what left and of the deletion.

KEEP/ledger/         the ledger, whose last line says that the node ended, with the digest of the list of what to delete
KEEP/approvals/      the decisions on apps, studies, releases and hospitals, without the items themselves
KEEP/deletion.json   what was deleted, how much of it, when, and that nothing of it is left

Only what fedthorax itself made is deleted: a hospital may keep its exports and password files in the same folder.
Nothing in KEEP describes a patient. Deleted files may still be readable on the disk itself; whoever needs more must
encrypt the disk or destroy it. Without the deleted key nobody can compute a pseudonym again.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from federation.enrolment.standing import standing
from federation.ledger.chain import PASSED, Entry, Ledger, ledger_file, verify
from federation.node import reasons
from federation.node.start import LOCK
from federation.protocol.package_files import PACKAGES
from federation.protocol.release_files import BEGINS_FROM, ENCODERS
from federation.secure_aggregation.store import witness_folder
from models.refusal import Refusal
from pipeline.feeds.result_queue import queue_folder
from pipeline.site.folder import Site
from pipeline.system.atomic_files import sync_tree, write_durably
from pipeline.system.folder_format import FILE as FORMAT_FILE
from pipeline.system.locks import alone

LINE = "node decommissioned"
_APPROVALS = ("apps", "studies", "peers", PACKAGES, BEGINS_FROM, ENCODERS)
# The keys first: without them, pseudonyms in a copy that somebody has mean nothing.
_OURS = (
    *("keys", "cohort", "pacs", "pull", "gateway", "privacy", "sandbox", "flower_home", "logs", *_APPROVALS),
    *("ledger", "withdrawn.txt", "check.html", FORMAT_FILE, "site.toml"),
)


@dataclass(frozen=True)
class Part:
    """A file or folder that fedthorax made in the site's folder, as it was before the deletion."""

    name: str
    files: int
    bytes: int


def decommission(site: Site, keep: Path) -> tuple[list[Part], int]:
    """Delete a site; write what must be kept to the new folder `keep`.

    Returns what was deleted, and how many other files and folders are left in the site's folder. The ledger is verified
    and copied before anything is deleted. Repeat it after an error with another `keep`.
    Raises Refusal: E_NODE_RUNNING, E_KEEP_FOLDER, those of `verify` and `Ledger`; OSError.
    """
    folder, keep = site.folder.resolve(), keep.resolve()
    if keep.exists() or keep.is_relative_to(folder) or folder.is_relative_to(keep):
        raise Refusal(reasons.KEEP_FOLDER, private=str(keep))
    site.logs.mkdir(exist_ok=True)
    with alone(site.logs / LOCK, reasons.NODE_RUNNING):
        found, parts = standing(site), list(_parts(site, folder))
        planned = json.dumps([asdict(part) for part in parts]).encode()
        verify(ledger_file(site))
        digest = hashlib.sha256(planned).hexdigest()
        head = Ledger(ledger_file(site)).append(Entry("", None, "here", LINE, 0, digest, "", "", PASSED))
        keep.mkdir(parents=True, mode=0o700)
        _copy(folder, keep)
        shutil.rmtree(witness_folder(folder), ignore_errors=True)
        for part in parts:
            _delete(folder / part.name)
        _remove_empty(site)
    others = len(list(folder.iterdir()))
    if not others:
        folder.rmdir()
    about = {
        "site": site.name,
        "name_in_study": found.name if found else None,
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "software": version("fedthorax"),
        "ledger": asdict(head),
        "deleted": [asdict(part) for part in parts],
        "deleted_sha256": digest,
        "nothing_left": not [*_parts(site, folder)] and not witness_folder(folder).exists(),
        "other_files_left": others,
    }
    write_durably(keep / "deletion.json", json.dumps(about, indent=1).encode())
    return parts, others


def _parts(site: Site, folder: Path) -> Iterator[Part]:
    for path in (*(folder / name for name in _OURS), *_of_feeds(site)):
        name = str(path.relative_to(folder) if path.is_relative_to(folder) else path)
        if path.is_symlink() or path.is_file():
            yield Part(name, 1, path.lstat().st_size)
        elif path.is_dir():
            files = [each for each in path.rglob("*") if not each.is_dir()]
            yield Part(name, len(files), sum(each.lstat().st_size for each in files))


def _delete(path: Path) -> None:
    """Delete a file, a link or a folder; what a link leads to stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _of_feeds(site: Site) -> Iterator[Path]:
    """Yield the files of what feeds have sent; in their folders a hospital may keep files of its own."""
    yield from sorted(queue_folder(site).glob("??/*.hl7"))
    yield from sorted(site.fhir_store.parent.glob(f"{site.fhir_store.name}*"))
    yield from (path for path in (site.omop_events,) if path.is_file())


def _remove_empty(site: Site) -> None:
    """Remove the folders of feeds in which nothing is left."""
    queue = queue_folder(site)
    for path in (*queue.glob("??"), queue, site.fhir_store.parent, site.omop_events.parent):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def _copy(folder: Path, keep: Path) -> None:
    """Copy ledger and decisions, durably."""
    shutil.copytree(folder / "ledger", keep / "ledger")
    for name in _APPROVALS:
        if (file := folder / name / "approvals.json").is_file():
            (keep / "approvals").mkdir(exist_ok=True)
            shutil.copyfile(file, keep / "approvals" / f"{name}.json")
    sync_tree(keep)
