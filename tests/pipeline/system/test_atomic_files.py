"""A file is replaced whole or not at all, and in one place of the code."""

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
    "federation/node/state.py": "rotates a log",
    "models/release.py": "models imports nothing of pipeline",
    "pipeline/clinic/cstore_receiver.py": "the name of an image follows from its content",
    "pipeline/clinic/model_registry.py": "exchanges two folders, the new one already on the disk",
    "pipeline/clinic/pacs_source.py": "the name of an image follows from its content",
    "pipeline/clinic/service.py": "rotates a log",
    "pipeline/pacs/series_store.py": "moves images, or their whole folder, that are complete",
}


def test_a_file_is_replaced_and_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")
    write_durably(path, b"after")
    assert path.read_bytes() == b"after"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")

    def fail(_: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        write_durably(path, b"after")
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_block_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")
    with pytest.raises(ValueError, match="half"), replacing(path) as file:
        file.write(b"aft")
        raise ValueError("half of it")
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_reader_sees_the_old_file_until_the_block_ends(tmp_path: Path) -> None:
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
def test_a_new_file_has_the_given_mode_within_the_umask(tmp_path: Path, umask: int, mode: int, given: int) -> None:
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "file", b"content", mode=mode)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == given


def test_a_folder_gets_its_final_name_with_all_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "incoming" / "inner").mkdir(parents=True)
    (tmp_path / "incoming" / "inner" / "file").write_bytes(b"content")
    move_durably(tmp_path / "incoming", tmp_path / "final")
    assert [path.name for path in tmp_path.iterdir()] == ["final"]
    assert (tmp_path / "final" / "inner" / "file").read_bytes() == b"content"


def test_files_are_renamed_in_one_place_and_where_a_reason_is_given() -> None:
    found = {
        str(path.relative_to(PROJECT))
        for package in ("models", "pipeline", "federation", "fedthorax", "configs")
        for path in (PROJECT / package).rglob("*.py")
        if any(_renames(node) for node in ast.walk(ast.parse(path.read_bytes())))
    }
    assert found == set(RENAMES)


def _renames(node: ast.AST) -> bool:
    """Whether this is a call of os.replace, os.rename or shutil.move, or of a path's `replace` or `rename`."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
        return False
    owner, name = node.func.value, node.func.attr
    if isinstance(owner, ast.Name) and owner.id in ("os", "shutil"):
        return name in ("replace", "rename", "renames", "move")
    # A text's `replace` takes two arguments, that of a date or a data class takes keywords.
    return name in ("replace", "rename") and len(node.args) == 1 and not node.keywords
