"""Wheel and sdist: complete, and the same bytes wherever and whenever they are built."""

import os
import re
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from federation.delivery.distributions import build_distributions, commit_of, source_epoch, source_files, version_of
from models.refusal import Refusal

ROOT = Path(__file__).resolve().parents[3]
EPOCH = 1_800_000_000
# The small packages, which have every kind of file: built in a second instead of ten.
SMALL = (
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "configs",
    "fedthorax",
    "models",
    "docs/systemd",
    "docs/nginx",
    ".ci",
)


def small_source() -> list[Path]:
    return [path for path in source_files(ROOT) if path.as_posix().startswith(SMALL)]


@pytest.fixture
def other_umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


@pytest.mark.slow
@pytest.mark.usefixtures("other_umask")
def test_two_builds_elsewhere_and_later_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build_distributions(ROOT, tmp_path / "first", epoch=EPOCH, files=small_source())
    copy = tmp_path / "another place" / "with a long name"
    for path in reversed(small_source()):  # another order in the folder, dates of now, permissions of umask 077
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, copy / path)
        if os.access(ROOT / path, os.X_OK):
            (copy / path).chmod(0o700)
    monkeypatch.setenv("LC_ALL", "tr_TR.UTF-8")
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    second = build_distributions(copy, tmp_path / "second", epoch=EPOCH, files=reversed(small_source()))
    assert [path.name for path in first] == [path.name for path in second]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


@pytest.mark.slow
def test_wheel_has_every_file_of_the_packages_and_sdist_every_file_of_the_commit(tmp_path: Path) -> None:
    wheel, sdist = build_distributions(ROOT, tmp_path, epoch=EPOCH)
    files = {path.as_posix() for path in source_files(ROOT)}
    packages = ("configs/", "federation/", "fedthorax/", "models/", "pipeline/")
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    assert {name for name in files if name.startswith(packages)} - inside == set()
    units = {Path(name).name for name in files if name.startswith("docs/systemd/")}
    assert units <= {Path(name).name for name in inside if "/share/fedthorax/systemd/" in name}
    with tarfile.open(sdist) as archive:
        members = {name.partition("/")[2]: name for name in archive.getnames()}
        assert all(entry.mtime == EPOCH and not entry.uname for entry in archive)
    assert set(members) == {*files, "PKG-INFO"}
    assert sdist.name == f"fedthorax-{version_of(ROOT)}.tar.gz"


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    environment = {**os.environ, "GIT_COMMITTER_DATE": "@1700000000 +0000"}
    subprocess.run(["git", "-C", folder, *identity, *arguments], env=environment, check=True, capture_output=True)


def test_date_is_of_the_variable_then_of_the_commit_then_fixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    outside = source_epoch(tmp_path)
    git(tmp_path, "init")
    (tmp_path / "a").write_text("a")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "--message", "a")
    assert source_epoch(tmp_path) == 1_700_000_000
    assert len(commit_of(tmp_path)) == 40
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")
    assert source_epoch(tmp_path) == 1
    assert outside == 1_767_225_600


def test_a_changed_tree_is_not_released(tmp_path: Path) -> None:
    git(tmp_path, "init")
    (tmp_path / "a").write_text("in no commit")
    with pytest.raises(Refusal, match="E_TREE_CHANGED") as refused:
        commit_of(tmp_path)
    assert refused.value.private == "?? a"


def test_guides_keep_the_key_out_of_the_clone_where_it_would_be_a_change() -> None:
    pages = [(ROOT / "docs" / name).read_text() for name in ("delivery.md", "containers.md")]
    lines = [line.strip() for page in pages for line in page.splitlines()]
    commands = [line for line in lines if line.startswith(("make ", "openssl genpkey"))]
    keys = [key for command in commands for key in re.findall(r"(?:--key|-out) ([^\s\"]+)", command)]
    assert keys
    assert all(key.startswith("../") for key in keys)
