"""Folders for files that are not complete: private, removed at the end, and after a kill by the next process."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.system.work_folder import work_folder

KILLED = """
import os, signal, sys
from pathlib import Path
from pipeline.system.work_folder import work_folder

with work_folder(Path(sys.argv[1])) as work:
    (work / "patients").mkdir()
    (work / "patients" / "one").write_text("secret")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def leave_behind(target: Path) -> Path:
    """Kill a process while it works; return the folder that it leaves."""
    before = set(target.parent.iterdir())
    subprocess.run([sys.executable, "-c", KILLED, target], check=False)
    (left,) = set(target.parent.iterdir()) - before
    assert list(left.rglob("one"))
    return left


def make(target: Path) -> None:
    with work_folder(target) as work:
        (work / "file").touch()


def test_folder_is_private_beside_its_target_and_removed_at_the_end(tmp_path: Path) -> None:
    with work_folder(tmp_path / "target") as work:
        (work / "file").touch()
        (place,) = tmp_path.iterdir()
        assert place.name.startswith(".")
        assert stat.S_IMODE(place.stat().st_mode) == stat.S_IMODE(work.stat().st_mode) == 0o700
        assert [path.name for path in work.iterdir()] == ["file"]  # whole, it may become a folder's content
    assert not list(tmp_path.iterdir())


def test_folder_is_removed_after_an_error_and_if_its_content_was_moved_away(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), work_folder(tmp_path / "target") as work:
        (work / "file").touch()
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    with work_folder(tmp_path / "target") as work:
        os.rename(work, tmp_path / "target")  # noqa: PTH104 - as `move_durably`
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_longest_name_of_a_target_is_no_problem(tmp_path: Path) -> None:
    make(tmp_path / ("n" * 255))
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_is_removed_for_any_target_in_the_same_place(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    kept = leave_behind(tmp_path / "elsewhere" / "target")
    leave_behind(tmp_path / "one")
    make(tmp_path / "another")
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]
    assert kept.is_dir()


def test_only_own_folders_of_ended_processes_are_removed(tmp_path: Path) -> None:
    """Others have a similar name, lie behind a link, or have no lock."""
    left = leave_behind(tmp_path / "target")
    hidden = left.rename(tmp_path / f"{left.name}.d")  # another ending
    left = leave_behind(tmp_path / "target")
    moved = left.rename(tmp_path / "elsewhere")
    left.symlink_to(moved)
    unlocked = tmp_path / left.name.replace(".unfinished", "0.unfinished")
    unlocked.mkdir()
    (unlocked / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    with work_folder(tmp_path / "target"):
        make(tmp_path / "target")
    assert sorted(tmp_path.rglob("*")) == before
    assert hidden.is_dir()


def test_folder_of_another_user_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = leave_behind(tmp_path / "target")
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    make(tmp_path / "target")
    assert left.is_dir()


def test_file_system_without_locks_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot say which process still works, so nothing is removed there."""
    left = leave_behind(tmp_path / "target")

    def no_locks(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    make(tmp_path / "target")
    assert list(tmp_path.iterdir()) == [left]
