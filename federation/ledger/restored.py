"""Recognise a ledger that was restored from a backup: what left after the backup is recorded nowhere at the site.

A line marks the restore, another one that the hospital has accepted it, and why. In between the gateway takes part in
nothing (E_RESTORED). `fedthorax node restore` writes the mark. A folder that was restored by other means is recognised
by the inode of the ledger's file, which is only ever appended to: a copy has another one. A file system may give the
inode of a deleted file to the next one; it then has another generation.

SITE_DIR/ledger/place.json   inode and generation of the ledger's file

Not recognised: a disk that was set back as a whole, such as a virtual machine's snapshot, and a copy over the old file.
"""

import json
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

from federation.ledger import reasons
from federation.ledger.chain import PASSED, Entry, Ledger, Line, read_lines
from models.refusal import Refusal
from pipeline.system.atomic_files import write_durably

RESTORED, ACCEPTED = "restored", "restore accepted"
MAX_NOTE = 200  # characters
_GET_VERSION = 2 << 30 | struct.calcsize("l") << 16 | ord("v") << 8 | 1  # FS_IOC_GETVERSION: _IOR('v', 1, long)


def mark_restored(path: Path, source: str) -> None:
    """Write to the ledger at `path` that it was restored; `source` says from what. Raises Refusal as `Ledger` does."""
    _append(path, f"{RESTORED}: {source}")
    _write_place(path)


def mark_if_copied(path: Path) -> None:
    """Mark the ledger as restored if its file is a copy. Raises Refusal as `Ledger` and `read_lines` do; OSError.

    A ledger without `place.json` counts as a copy if something came in or went out before.
    """
    if path.exists() and _is_in_its_place(path):
        return
    if any(line.direction != "here" for line in read_lines(path)):
        mark_restored(path, "the file is a copy")
    else:
        Ledger(path)  # creates it
        _write_place(path)


def is_restored(lines: Iterable[Line]) -> bool:
    """Tell whether a ledger was restored, and the hospital has not accepted this since."""
    restored = False
    for line in lines:
        if is_mark(line):
            restored = line.kind.startswith(f"{RESTORED}:")
    return restored


def is_mark(line: Line) -> bool:
    """Tell whether a line says that the ledger was restored, or that this was accepted."""
    return line.direction == "here" and line.kind.partition(":")[0] in (RESTORED, ACCEPTED)


def accept(path: Path, note: str) -> None:
    """Write to the ledger that the hospital accepts the restore. `note`: who decided, and why.

    Raises Refusal: E_NOT_RESTORED, E_RESTORE_NOTE, and those of `Ledger` and `read_lines`; OSError.
    """
    why = checked_note(note)
    mark_if_copied(path)
    if not is_restored(read_lines(path)):
        raise Refusal(reasons.NOT_RESTORED)
    _append(path, f"{ACCEPTED}: {why}")


def checked_note(note: str) -> str:
    """Return a note for a record, stripped. Raises Refusal E_RESTORE_NOTE if it is not one short line."""
    if not (note.strip() and note.isprintable() and len(note) <= MAX_NOTE):
        raise Refusal(reasons.RESTORE_NOTE, most=MAX_NOTE)
    return note.strip()


def _append(path: Path, kind: str) -> None:
    Ledger(path).append(Entry("", None, "here", kind, 0, "", "", "", PASSED))


def _place(path: Path) -> Path:
    return path.with_name("place.json")


def _is_in_its_place(path: Path) -> bool:
    """Tell whether the file is the one of which `place.json` speaks. An earlier version wrote no generation."""
    try:
        known = json.loads(_place(path).read_bytes())
        inode, generation = known["inode"], known.get("generation")
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return False
    now = _generation(path)
    is_same = inode == path.stat().st_ino and generation in (None, now)
    if is_same and generation != now:
        _write_place(path)
    return is_same


def _write_place(path: Path) -> None:
    write_durably(_place(path), json.dumps({"inode": path.stat().st_ino, "generation": _generation(path)}).encode())


def _generation(path: Path) -> int | None:
    """Return the generation of a file's inode, which changes when a new file gets the inode of a deleted one.

    None where the file system or the operating system has none. Source: ioctl_iflags(2), FS_IOC_GETVERSION.
    """
    try:
        import fcntl

        with path.open("rb") as file:
            answer = fcntl.ioctl(file, _GET_VERSION, bytes(struct.calcsize("l")))
    except (ImportError, OSError):
        return None
    return int.from_bytes(answer[:4], sys.byteorder)  # the kernel writes 32 bits
