"""A private folder for files that are not complete yet. What a killed process leaves in it is removed by the next one.

A backup, a restore, an export and a new release are made in a hidden folder beside their target: on the same disk, with
content that is as secret as the target's. A process that is killed cannot remove its folder. So each process locks a
file in its own: the system releases the lock when the process ends, and a folder whose lock is free belongs to nobody.

.fedthorax-RANDOM.unfinished/lock      held by the process that works here
.fedthorax-RANDOM.unfinished/content   what it writes
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PREFIX, _SUFFIX = ".fedthorax-", ".unfinished"  # not the target's name: it may be as long as names can be
_LOCK, _CONTENT = "lock", "content"


@contextmanager
def work_folder(target: Path) -> Iterator[Path]:
    """Make an empty folder for this user only, on the disk of `target`; remove it after the block, if it is there then.

    Before that, folders that killed processes left beside `target` are removed. Raises OSError.
    """
    _remove_abandoned(target.parent)
    folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=_PREFIX, suffix=_SUFFIX))  # mode 0700
    try:
        unnamed = folder / "new"
        with unnamed.open("w") as lock:
            with contextlib.suppress(OSError):  # a file system without locks, where nobody could remove it either
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            unnamed.rename(folder / _LOCK)  # now: with this name it is never unlocked while this process works
            content = folder / _CONTENT
            content.mkdir(mode=0o700)
            yield content
    finally:
        _remove(folder)


def _remove_abandoned(place: Path) -> None:
    """Remove the folders in `place` whose lock is free. Folders of other users stay."""
    for folder in place.glob(f"{_PREFIX}*{_SUFFIX}"):
        with contextlib.suppress(OSError):  # another process removes it, or it is locked
            if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
                continue
            with (folder / _LOCK).open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(folder)


def _remove(folder: Path) -> None:
    # The lock last: a process that is killed meanwhile leaves a folder that the next one removes.
    shutil.rmtree(folder / _CONTENT, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
