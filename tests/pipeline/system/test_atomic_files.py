"""Tests of atomic file replacement, and that only the listed modules rename files."""

import ast
import os
import stat
from pathlib import Path

import pytest

from pipeline.system.atomic_files import move_durably, replacing, write_atomically, write_durably

PROJECT = Path(__file__).resolve().parents[3]
RENAMES = {
    "pipeline/system/atomic_files.py": "the one place",
    "federation/comparison/signed_release.py": "moves a folder and the key beside it, once both are verified",
    "federation/migration/export.py": "moves an archive that was read back under its temporary name",
    "federation/migration/import_archive.py": "moves a folder that was unpacked and verified",
    "pipeline/system/child_logs.py": "rotates a log",
    "federation/delivery/archives.py": "moves an archive that is complete",
    "federation/delivery/bundle.py": "moves wheels within a temporary folder",
    "federation/delivery/debian_package.py": "moves a program within a temporary folder",
    "federation/delivery/make_release.py": "moves a release that is complete and signed",
    "models/release.py": "models imports nothing of pipeline",
    "pipeline/adaptation/adapt.py": "moves a derived release and the key beside it, once both are verified",
    "pipeline/clinic/cstore_receiver.py": "the name of an image follows from its content",
    "pipeline/clinic/model_registry.py": "exchanges two folders, the new one already on the disk",
    "pipeline/clinic/pacs_source.py": "the name of an image follows from its content",
    "pipeline/system/work_folder.py": "gives a lock its name once it is held",
    "pipeline/system/sqlite_format.py": "exchanges a database by a whole copy that SQLite wrote",
    "pipeline/scoring/answer_folder.py": "moves the files of an answer, all of which are complete",
    "pipeline/pacs/series_store.py": "moves images, or their whole folder, that are complete",
}


def test_file_is_replaced_and_accessible_to_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")
    write_durably(path, b"after")
    assert path.read_bytes() == b"after"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_failed_disk_write_leaves_only_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")

    def fail(_: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        write_durably(path, b"after")
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"  # stands for a device, which only root can make
    os.mkfifo(pipe)
    for write in (write_durably, write_atomically):
        with pytest.raises(OSError, match="not a regular file"):
            write(pipe, b"after")
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]


def test_exception_in_the_block_leaves_only_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")
    with pytest.raises(ValueError, match="half"), replacing(path) as file:
        file.write(b"aft")
        raise ValueError("half of it")
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_readers_see_the_old_file_until_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")
    with replacing(path) as file:
        file.write(b"after")
        file.flush()
        assert path.read_bytes() == b"before"
        (hidden,) = set(tmp_path.iterdir()) - {path}
        assert hidden.name.startswith(".") and hidden.suffix == ".tmp"
    assert path.read_bytes() == b"after"


@pytest.mark.parametrize(("umask", "mode", "given"), [(0o022, 0o666, 0o644), (0o077, 0o644, 0o600), (0, 0o600, 0o600)])
def test_new_file_has_the_given_mode_limited_by_the_umask(tmp_path: Path, umask: int, mode: int, given: int) -> None:
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "file", b"content", mode=mode)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == given


def test_folder_is_moved_to_its_final_name_with_all_files(tmp_path: Path) -> None:
    (tmp_path / "incoming" / "inner").mkdir(parents=True)
    (tmp_path / "incoming" / "inner" / "file").write_bytes(b"content")
    move_durably(tmp_path / "incoming", tmp_path / "final")
    assert [path.name for path in tmp_path.iterdir()] == ["final"]
    assert (tmp_path / "final" / "inner" / "file").read_bytes() == b"content"


def test_files_are_renamed_only_in_the_listed_modules() -> None:
    found = {
        str(path.relative_to(PROJECT))
        for package in ("models", "pipeline", "federation", "fedthorax", "configs")
        for path in (PROJECT / package).rglob("*.py")
        if any(_renames(node) for node in ast.walk(ast.parse(path.read_bytes())))
    }
    assert found == set(RENAMES)


def _renames(node: ast.AST) -> bool:
    """Whether the node calls os.replace, os.rename, shutil.move, or `replace` or `rename` of a path."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
        return False
    owner, name = node.func.value, node.func.attr
    if isinstance(owner, ast.Name) and owner.id in ("os", "shutil"):
        return name in ("replace", "rename", "renames", "move")
    # `str.replace` takes two arguments. `replace` of a date or a data class takes keyword arguments.
    return name in ("replace", "rename") and len(node.args) == 1 and not node.keywords
