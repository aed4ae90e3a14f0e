"""The folder that the answer to one scan is written to. It never holds files of two answers, or replaces the scan's."""

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from models.refusal import Refusal
from pipeline.imaging.discovery import walk
from pipeline.imaging.nifti_header import is_meta, meta_voxel_file, read_meta_header
from pipeline.imaging.nifti_reader import is_volume_file
from pipeline.scoring import reasons
from pipeline.scoring.html_report import PAGE, UNSCORED_PAGE
from pipeline.scoring.label_maps import LUNGS, OPACITIES
from pipeline.system.atomic_files import require_replaceable
from pipeline.system.locks import folder_in_turn

SCORE, UNSCORED = "score.json", "lungs.json"
NAMES = (SCORE, PAGE, UNSCORED, UNSCORED_PAGE, LUNGS, OPACITIES)  # of all files that an answer may have
UNFINISHED = ".answer-"  # start of the name of the hidden folder in which an answer is written

_Identity = tuple[int, int]


def require_apart(out: Path, series: Sequence[Path], lungs: Path | None = None) -> None:
    """Check that an answer in `out` does not replace a file of the scan or its mask, and is not among the scan's files.

    Files are compared as the system knows them, so links and other spellings of a path are no way around. The folder of
    several DICOM files that are named one by one is a scan's folder too.

    Raises Refusal E_OUT_IS_INPUT.
    """
    folders = _existing([path if path.is_dir() else path.parent for path in series if _has_own_folder(path, series)])
    place = Path(os.path.realpath(out))
    if folders & _existing((place, *place.parents)):
        raise Refusal(reasons.OUT_IS_INPUT, private=str(out))
    if not (written := _existing(out / name for name in NAMES)):
        return
    inputs = [path for _, path in walk([path for path in series if path.exists()], lambda _: True, [])]
    inputs += [voxels for path in inputs if is_meta(path) for voxels in _voxel_file(path)]
    if written & _existing([*inputs, *([lungs] if lungs else [])]):
        raise Refusal(reasons.OUT_IS_INPUT, private=str(out))


def _has_own_folder(path: Path, series: Sequence[Path]) -> bool:
    """Whether the scan is in a folder of its own, as far as its path tells; a single file may lie among others."""
    return path.is_dir() or (len(series) > 1 and not is_volume_file(path.name))


def _voxel_file(path: Path) -> list[Path]:
    """Return the file that holds the voxels of a MetaImage; none for a header that `read_one` will refuse."""
    try:
        return [meta_voxel_file(path.resolve(), read_meta_header(path)[0])]
    except (Refusal, OSError):
        return []


def _existing(paths: Iterable[Path]) -> set[_Identity]:
    """Return device and inode of each path that exists; links are followed."""
    found = set()
    for path in paths:
        try:
            status = path.stat()
        except OSError:
            continue
        found.add((status.st_dev, status.st_ino))
    return found


@contextmanager
def replacing_answer(out: Path) -> Iterator[Path]:
    """Yield an empty folder for the files of an answer, which the end of the block moves to `out`.

    They replace all files of an earlier answer; other files in `out` are never touched. If the block fails, `out` stays
    as it was. The folder lies inside `out`, because `out` may be a mount, beside which nothing can be written. Two
    processes write to `out` one after the other.

    Raises Refusal E_REPORT_WRITE.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with _alone_in(out):
            folder = Path(tempfile.mkdtemp(prefix=UNFINISHED, suffix=".tmp", dir=out))
            try:
                yield folder
                _remove_files(out)
                for path in sorted(folder.iterdir()):
                    path.replace(out / path.name)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise Refusal(reasons.REPORT_WRITE, private=str(error)) from error


def remove_answer(out: Path) -> bool:
    """Remove the files of an earlier answer from `out`, and return whether there were any. Raises OSError."""
    if not out.is_dir():
        return False
    with _alone_in(out) as were_unfinished:
        return _remove_files(out) or were_unfinished


def may_hold_answer(out: Path) -> bool:
    """Whether `out` holds a file of an answer, or cannot be listed, so that nobody knows."""
    try:
        names = [path.name for path in out.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return any(name in NAMES or name.startswith(UNFINISHED) for name in names)


@contextmanager
def _alone_in(out: Path) -> Iterator[bool]:
    """Hold `out`, and remove what killed processes left of answers. Yield whether there was any. Raises OSError.

    Every process holds `out` while it writes, so nobody writes to the folders found now. If the file system cannot lock
    `out`, they stay.
    """
    with folder_in_turn(out) as is_mine:
        left = [path for path in out.glob(f"{UNFINISHED}*.tmp") if path.is_dir() and not path.is_symlink()]
        for path in left if is_mine else ():
            shutil.rmtree(path)
        yield is_mine and bool(left)


def _remove_files(out: Path) -> bool:
    there = [path for path in (out / name for name in NAMES) if path.is_symlink() or path.exists()]
    for path in there:
        require_replaceable(path)
    for path in there:
        path.unlink()
    return bool(there)
