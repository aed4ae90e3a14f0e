"""The plan of an upgrade: what this version changes in a folder, whether now is a good time, and how to go back.

It is made with the new version while the old one may still run, and it changes nothing.
"""

import shutil
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from federation.upgrade import reasons
from models.refusal import Refusal
from pipeline.system.atomic_files import sync_folder
from pipeline.system.folder_format import FILE, FORMATS, Kind, read_stamp
from pipeline.system.reasons import NO_WAY_BACK
from pipeline.system.sqlite_format import SqliteFormat, copies, file_version, go_back

Effect = Literal["unchanged", "new", "migrated", "made again", "cannot be opened", "damaged"]

_SPARE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Store:
    """A file with a format. `made_again`: its content is made again from the hospital's sources instead of migrated."""

    path: Path
    of: SqliteFormat
    made_again: bool = False


@dataclass(frozen=True)
class Change:
    """What happens to one file. `found` and `known`: its format, and the one that this version writes."""

    file: str
    found: int
    known: int
    effect: Effect
    bytes: int


@dataclass(frozen=True)
class Plan:
    """The answer to `upgrade-check`.

    `before`: the version that last worked in the folder, "" if it is not known. `running`: whether it is in use.
    `waits_for`: what is under way and must end first. `refused`: why this version cannot be used at all.
    `needs_bytes`, `free_bytes`: on the folder's disk. `forward`, `back`: the commands, one a line.
    """

    kind: Kind
    before: str
    version: str
    running: bool
    changes: list[Change]
    waits_for: list[str]
    refused: list[str]
    needs_bytes: int
    free_bytes: int
    forward: list[str]
    back: list[str]

    @property
    def safe_now(self) -> bool:
        """Whether the upgrade can be made now."""
        return not self.waits_for and not self.refused

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "safe_now": self.safe_now}


@dataclass(frozen=True)
class Commands:
    """The commands around an upgrade. `service`: the systemd unit; `after`: what the new version runs before it starts.

    `program` is the command of this kind, such as "fedthorax node".
    """

    service: str
    program: str
    after: Sequence[str] = ()


def make_plan(
    kind: Kind,
    folder: Path,
    stores: Sequence[Store],
    commands: Commands,
    *,
    running: bool,
    waits_for: Sequence[str],
) -> Plan:
    """Make the plan for a folder; nothing is changed. Raises OSError if the folder cannot be read."""
    changes = [change for store in stores if (change := _change(folder, store))]
    stamp, own = read_stamp(folder), version("fedthorax")
    impossible = [f"{each.file} has format {each.found}; this version knows formats up to {each.known}"
                  for each in changes if each.effect == "cannot be opened"]  # fmt: skip
    impossible += [f"{each.file} is damaged" for each in changes if each.effect == "damaged"]
    if stamp.format > FORMATS[kind]:
        impossible.append(f"the folder has format {stamp.format}; this version knows formats up to {FORMATS[kind]}")
    migrated = sum(each.bytes for each in changes if each.effect == "migrated")
    again = sum(each.bytes for each in changes if each.effect == "made again")
    needs, free = 3 * migrated + again + _SPARE_BYTES, shutil.disk_usage(folder).free
    waits = [*waits_for, *([f"the disk: {needs / 2**20:.0f} MB must be free"] if free < needs else [])]
    is_migrated = any(each.effect == "migrated" for each in changes)
    forward, back = _commands(folder, commands, stamp.software, own, undo=is_migrated)
    return Plan(kind, stamp.software, own, running, changes, waits, impossible, needs, free, forward, back)


def _change(folder: Path, store: Store) -> Change | None:
    if not store.path.exists():
        return None
    try:
        found = file_version(store.path, store.of)
    except sqlite3.DatabaseError:
        found, effect = 0, "damaged"
    else:
        effect = _effect(found, store)
    name = store.path.relative_to(folder).as_posix()
    return Change(name, found, store.of.version, effect, store.path.stat().st_size)  # type: ignore[arg-type]


def _effect(found: int, store: Store) -> Effect:
    if found == store.of.version:
        return "unchanged"
    if found == 0:
        return "new"
    if store.made_again:
        return "made again"
    return "migrated" if found < store.of.version else "cannot be opened"


def _commands(folder: Path, of: Commands, before: str, own: str, *, undo: bool) -> tuple[list[str], list[str]]:
    """Return the commands of the upgrade and of the way back, for an installation as docs/delivery.md describes."""
    name, old = folder.resolve().name, f"/opt/fedthorax-{before or 'OLD'}"
    stop, start = f"systemctl stop {of.service}@{name}", f"systemctl start {of.service}@{name}"
    backup = f"{old}/bin/{of.program} backup {folder} BACKUP_FILE"
    after = [f"/opt/fedthorax/bin/{of.program} {each} {folder}" for each in of.after]
    forward = [backup, stop, f"ln -sfn /opt/fedthorax-{own} /opt/fedthorax", *after, start]
    undone = [f"/opt/fedthorax-{own}/bin/{of.program} upgrade-undo {folder}"] if undo else []
    return forward, [stop, *undone, f"ln -sfn {old} /opt/fedthorax", *after, start]


def undo(folder: Path, stores: Sequence[Store], *, what: str, is_running: Callable[[], bool]) -> dict[str, int]:
    """Put back the copies from before the last upgrade; return their formats by file.

    The present files stay beside them as copies, so an upgrade can be repeated and nothing is lost. A process that is
    killed meanwhile has exchanged some of the files: repeat the command.
    Raises Refusal: E_STILL_RUNNING, E_NO_WAY_BACK, E_COPY_DAMAGED; OSError; sqlite3.Error.
    """
    if is_running():
        raise Refusal(reasons.STILL_RUNNING, what=what)
    kept = [store for store in stores if not store.made_again and copies(store.path)]
    done = {store.path.relative_to(folder).as_posix(): go_back(store.path, store.of) for store in kept}
    found = {name: number for name, number in done.items() if number is not None}
    if not found:
        raise Refusal(NO_WAY_BACK)
    with suppress(FileNotFoundError):  # the older version writes its own
        (folder / FILE).unlink()
        sync_folder(folder)
    return found
