"""Build the wheel and the sdist so that everybody who builds the same commit gets the same bytes.

The files of the commit are copied into a new folder with fixed dates and permissions, and built there with a fixed time
zone, locale and umask. Both archives are then written again in a fixed order. The bytes still depend on the versions of
setuptools and zlib, which release.json records.

https://reproducible-builds.org/specs/source-date-epoch/
"""

import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from pathlib import Path

from federation.delivery import reasons
from federation.delivery.archives import files_below, rewrite_zip, write_tar
from models.refusal import Refusal

# What `make viewer` adds to the source: not in git, but part of the wheel.
VIEWER = Path("pipeline/clinic/page/static")
_VIEWER_FILES = ("niivue.js", "niivue.LICENSE.txt")
_FIXED_EPOCH = 1_767_225_600  # 1 January 2026: the date of a build outside git
_NOT_SOURCE = {"PKG-INFO", ".venv", "build", "dist", "demo", "node_modules", "__pycache__"}
_METADATA = "import setuptools.build_meta as b; print(b.prepare_metadata_for_build_wheel('../metadata'))"
_WHEEL = "import setuptools.build_meta as b; print(b.build_wheel('../wheel'))"


def version_of(source: Path) -> str:
    """Return the version in pyproject.toml."""
    return str(tomllib.loads((source / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"])


def source_epoch(source: Path) -> int:
    """Return the date of a build in Unix seconds: SOURCE_DATE_EPOCH, or the last commit's, or a fixed one."""
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(given)
    return int(_git(source, "log", "-1", "--format=%ct") or _FIXED_EPOCH)


def commit_of(source: Path) -> str:
    """Return the hash of the commit, or "" outside git. Raises Refusal E_TREE_CHANGED if the files differ from it."""
    if changed := _git(source, "status", "--porcelain"):
        raise Refusal(reasons.TREE_CHANGED, private=changed)
    return _git(source, "rev-parse", "HEAD")


def source_files(source: Path) -> list[Path]:
    """Return the files of a release, relative to `source`: those of git and the viewer's, sorted."""
    if listed := _git(source, "ls-files", "-z"):
        names = {Path(name) for name in listed.split("\0") if name}
    else:
        names = {path.relative_to(source) for path in files_below(source)}
        names = {name for name in names if not _NOT_SOURCE.intersection(name.parts) and ".egg-info" not in str(name)}
    names |= {VIEWER / name for name in _VIEWER_FILES if (source / VIEWER / name).exists()}
    return sorted(names, key=lambda path: path.as_posix())


def build_distributions(source: Path, out: Path, *, epoch: int, files: Iterable[Path] | None = None) -> list[Path]:
    """Build the wheel and the sdist of `source` into the folder `out`; return both paths.

    `epoch`: the date of all files in Unix seconds. `files`: relative to `source`; by default `source_files`.

    Raises Refusal E_BUILD_FAILED.
    """
    name = f"fedthorax-{version_of(source)}"
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fedthorax-build-") as temporary:
        stage, wheels, metadata = (Path(temporary) / part for part in (name, "wheel", "metadata"))
        for folder in (stage, wheels, metadata):
            folder.mkdir()
        for path in source_files(source) if files is None else files:
            _copy(source / path, stage / path, epoch)
        _setuptools(stage, _METADATA, epoch, "making the metadata")
        shutil.copyfile(next(metadata.rglob("METADATA")), stage / "PKG-INFO")
        for left in (*stage.glob("*.egg-info"), stage / "build"):
            shutil.rmtree(left, ignore_errors=True)
        sdist = out / f"{name}.tar.gz"
        write_tar(stage, sdist, epoch, compress=True)
        (stage / "PKG-INFO").unlink()
        _setuptools(stage, _WHEEL, epoch, "building the wheel")
        built = next(wheels.glob("*.whl"))
        rewrite_zip(built, epoch)
        wheel = out / built.name
        shutil.copyfile(built, wheel)
    return [wheel, sdist]


def _copy(old: Path, new: Path, epoch: int) -> None:
    new.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(old, new)
    new.chmod(0o755 if old.stat().st_mode & 0o100 else 0o644)
    os.utime(new, (epoch, epoch))


def _setuptools(stage: Path, code: str, epoch: int, step: str) -> None:
    # Isolated (-I): no setting of this user or of the folder changes what is built.
    fixed = {"SOURCE_DATE_EPOCH": str(epoch), "TZ": "UTC", "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0"}
    environment = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(stage.parent), **fixed}
    command = [sys.executable, "-I", "-W", "ignore", "-c", code]
    done = subprocess.run(command, cwd=stage, env=environment, umask=0o022, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Refusal(reasons.BUILD_FAILED, step=step, private=done.stderr[-2000:])


def _git(source: Path, *arguments: str) -> str:
    """Return what git prints, or "" if `source` is not the top of a git work tree."""
    if not (source / ".git").exists():
        return ""
    command = ["git", "-C", str(source), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
