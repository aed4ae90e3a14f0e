"""Recognise a ledger that was restored from a backup: what left after the backup is recorded nowhere at the site.

A line marks the restore, another one that the hospital has accepted it, and why. In between the gateway takes part in
nothing (E_RESTORED). `fedthorax node restore` writes the mark. A folder that was restored by other means is recognised
by the inode of the ledger's file, which is only ever appended to: a copy has another one.

SITE_DIR/ledger/place.json   the inode of the ledger's file

Not recognised: a disk that was set back as a whole, such as a virtual machine's snapshot, and a copy over the old file.
"""

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from federation.ledger import reasons
from federation.ledger.chain import PASSED, Entry, Ledger, Line, read_lines
from models.refusal import Refusal
from pipeline.system.atomic_files import write_durably

RESTORED, ACCEPTED = "restored", "restore accepted"
MAX_NOTE = 200  # characters


def mark_restored(path: Path, source: str) -> None:
    """Write to the ledger at `path` that it was restored; `source` says from what. Raises Refusal as `Ledger` does."""
    _append(path, f"{RESTORED}: {source}")
    _write_place(path)


def mark_if_copied(path: Path) -> None:
    """Mark the ledger as restored if its file is a copy. Raises Refusal as `Ledger` and `read_lines` do; OSError.

    A ledger without `place.json` counts as a copy if something came in or went out before.
    """
    place = None
    with suppress(FileNotFoundError, ValueError, KeyError, TypeError):
        place = int(json.loads(_place(path).read_bytes())["inode"])
    if place is not None and path.exists() and place == path.stat().st_ino:
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


def _write_place(path: Path) -> None:
    write_durably(_place(path), json.dumps({"inode": path.stat().st_ino}).encode())
