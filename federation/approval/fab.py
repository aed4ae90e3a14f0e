"""Flower's app bundle (FAB): build it reproducibly, and read it as untrusted input.

A FAB is a zip of the app's files and of `.info/CONTENT`, which lists each file with its SHA-256 (flwr.cli.build).
Flower's own build rewrites pyproject.toml with its version of a TOML writer, and records the operating system. Our
build takes the files unchanged and fixes everything else: dates, order, modes, no compression. So the hospital can
compute, from the files that it has installed itself, the hash of the app that the server sends. Flower installs both.
"""

import hashlib
import io
import re
import stat
import sys
import sysconfig
import tokenize
import tomllib
import unicodedata
import zipfile
from dataclasses import dataclass
from functools import cache
from importlib.machinery import all_suffixes
from pathlib import Path, PurePosixPath
from typing import Any

from federation.approval import reasons
from models.refusal import Refusal

APP = Path(__file__).parents[1] / "app"  # the app that this release ships
CONFIG = "pyproject.toml"
MANIFEST = ".info/CONTENT"
MAX_BYTES = 10 * 2**20  # flwr.common.constant.FAB_MAX_SIZE; here also the limit of the unpacked files
MAX_FILES = 500
_DATE = (2024, 10, 1, 0, 0, 0)  # flwr.common.constant.FAB_DATE
_VALUE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+:-]{0,99}")
_UNIX, _DOS = 3, 0  # in the zip's header: the system whose rules apply to the file modes
# How honest apps are packed, by system and mode: by our build, and by Flower's build on Unix and on Windows.
_FORMS = ((_UNIX, stat.S_IFREG | 0o600), (_UNIX, 0o600), (_DOS, 0o600))
_IMPORTABLE = (*all_suffixes(), ".pyd")
# Modules that an app calls, wherever they are installed; and modules that Python imports by itself at its start.
_OURS = frozenset(("configs", "federation", "flwr", "models", "monai", "numpy", "opacus", "pipeline", "torch"))
_AT_START = frozenset(("sitecustomize", "usercustomize"))
_NEVER_IMPORTED = frozenset(("benchmarks", "docs", "examples", "scripts", "tests"))  # left by some libraries


@dataclass(frozen=True)
class App:
    """The contents of a FAB: its SHA-256, and each file's bytes by path. `config`: its parsed pyproject.toml."""

    sha256: str
    files: dict[str, bytes]
    config: dict[str, Any]

    @property
    def name(self) -> str:
        """Publisher, name and version, as the app's author wrote them."""
        project = self.config["project"]
        return f"{self.config['tool']['flwr']['app']['publisher']}/{project['name']} {project['version']}"


def build(folder: Path) -> bytes:
    """Build the FAB of the app in `folder`, from the files that Flower's own build would take.

    Raises Refusal: E_APP_CONFIG, E_APP_SIZE, E_APP_TEXT.
    """
    from federation.flower.app_build import build_fab_from_disk

    if not (folder / CONFIG).is_file():  # otherwise Flower would read all that is below the folder first
        raise Refusal(reasons.APP_CONFIG, problem=f"there is no {CONFIG}", private=str(folder))
    try:
        content = build_fab_from_disk(folder)
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise Refusal(reasons.APP_CONFIG, problem="it cannot be built", private=str(error)) from error
    with zipfile.ZipFile(io.BytesIO(content)) as built:
        files = {name: built.read(name) for name in built.namelist() if name != MANIFEST}
    files[CONFIG] = (folder / CONFIG).read_bytes()
    fab = pack(files)
    read(fab)  # do not send out what a site would refuse
    return fab


def pack(files: dict[str, bytes]) -> bytes:
    """Pack these files, by path, into a FAB: the same bytes on every machine and at any time."""
    names = [CONFIG, *sorted(files.keys() - {CONFIG})]
    lines = [f"{name},{hashlib.sha256(files[name]).hexdigest()},{8 * len(files[name])}" for name in names]
    listed = {**{name: files[name] for name in names}, MANIFEST: "\n".join(lines).encode()}
    return _archive(listed, _UNIX, stat.S_IFREG | 0o600)


def _archive(files: dict[str, bytes], system: int, mode: int) -> bytes:
    """Return the zip of these files, in their order, as `zipfile` writes it."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as fab:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name, _DATE)
            entry.create_system = system
            entry.external_attr = mode << 16
            fab.writestr(entry, data)
    return content.getvalue()


def read(content: bytes) -> App:
    """Parse a FAB without writing or running any part of it.

    Raises Refusal: E_APP_SIZE, E_APP_ARCHIVE, E_APP_PATH, E_APP_MANIFEST, E_APP_PACKING, E_APP_SHADOW, E_APP_TEXT,
    E_APP_CONFIG.
    """
    if len(content) > MAX_BYTES:
        raise _too_large()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            _check_entries(entries)
            # zipfile returns no more bytes than the header states; a false header fails its CRC check.
            files = {entry.filename: archive.read(entry) for entry in entries}
    except Refusal:
        raise
    except Exception as error:  # zipfile and its decompressors have no common exception
        raise Refusal(reasons.APP_ARCHIVE, private=repr(str(error))) from None
    _check_manifest(files)
    _check_packing(content, entries[0], files)
    del files[MANIFEST]
    _check_shadows(files)
    for name, data in files.items():
        _check_text(name, data)
    return App(hashlib.sha256(content).hexdigest(), files, _config(files))


def _too_large() -> Refusal:
    return Refusal(reasons.APP_SIZE, megabytes=MAX_BYTES >> 20, files=MAX_FILES)


def _check_entries(entries: list[zipfile.ZipInfo]) -> None:
    if len(entries) > MAX_FILES or sum(entry.file_size for entry in entries) > MAX_BYTES:
        raise _too_large()
    for entry in entries:
        # bz2 and LZMA decompress without a limit on memory.
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise Refusal(reasons.APP_ARCHIVE, private=f"{entry.filename!r}: unusual compression")
        kind = stat.S_IFMT(entry.external_attr >> 16)  # 0 if the archive was not made on Unix
        if kind not in (0, stat.S_IFREG) or not _is_plain(entry.filename):
            raise Refusal(reasons.APP_PATH, private=repr(entry.filename))
    names = [_same(entry.filename) for entry in entries]
    folders = {str(folder) for name in names for folder in PurePosixPath(name).parents}
    if len(set(names)) < len(names) or folders & set(names):
        raise Refusal(reasons.APP_PATH, private="two files of one name")


def _is_plain(name: str) -> bool:
    """Tell whether the name is a relative path without "..", in the spelling in which it is unpacked."""
    return not any(part in ("", ".", "..") for part in name.split("/")) and not set(name) & set("\\:\0")


def _same(name: str) -> str:
    """Return one common spelling for names that some file systems treat as equal."""
    return unicodedata.normalize("NFKC", name).casefold()


def _check_manifest(files: dict[str, bytes]) -> None:
    """Check the file list: Flower checks only the listed files, and would install an unlisted file unchecked."""
    listed = {}
    for line in files.get(MANIFEST, b"").decode("utf-8", "replace").strip().split("\n"):
        name, _, sha256 = line.rpartition(",")[0].rpartition(",")
        listed[name] = sha256
    if listed != {name: hashlib.sha256(data).hexdigest() for name, data in files.items() if name != MANIFEST}:
        raise Refusal(reasons.APP_MANIFEST)


def _check_packing(content: bytes, first: zipfile.ZipInfo, files: dict[str, bytes]) -> None:
    """Require that the archive holds only these files: nobody would see other bytes around or between them."""
    form = (first.create_system, first.external_attr >> 16)
    if form not in _FORMS or _archive(files, *form) != content:
        raise Refusal(reasons.APP_PACKING)


def _check_shadows(files: dict[str, bytes]) -> None:
    """Refuse known module names: Python searches the app's folder first, so all code would import its `torch.py`."""
    importable = [PurePosixPath(name) for name in files if name.lower().endswith(_IMPORTABLE)]
    brought = {_same(path.parts[0] if len(path.parts) > 1 else path.name.partition(".")[0]) for path in importable}
    for name in sorted(brought & _known_modules()):
        raise Refusal(reasons.APP_SHADOW, name=name)


@cache
def _known_modules() -> frozenset[str]:
    """Return the module names that code here imports: Python's own, ours, and those of the installed libraries."""
    folders = {Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")}
    installed = {path.name.partition(".")[0] for folder in folders if folder.is_dir() for path in folder.iterdir()}
    known = sys.stdlib_module_names | (installed - _NEVER_IMPORTED) | _OURS | _AT_START
    return frozenset(_same(name) for name in known)


def _check_text(name: str, data: bytes) -> None:
    """Require UTF-8: Python obeys a source's encoding line (PEP 263), so a reviewer could see other text than runs."""
    try:
        data.decode("utf-8")
        declared = tokenize.detect_encoding(io.BytesIO(data).readline)[0] if name.endswith(".py") else "utf-8"
    except (UnicodeDecodeError, SyntaxError):
        declared = "none"
    if declared not in ("utf-8", "utf-8-sig", "utf8", "ascii"):
        raise Refusal(reasons.APP_TEXT, private=f"{name!r}: {declared}")


def _config(files: dict[str, bytes]) -> dict[str, Any]:
    """Read pyproject.toml. Flower builds a folder's name from three of its values, so they must not contain a path."""
    try:
        config = tomllib.loads(files[CONFIG].decode("utf-8"))
        app = config["tool"]["flwr"]["app"]
        values = {"publisher": app["publisher"], **{key: config["project"][key] for key in ("name", "version")}}
        client = app["components"]["clientapp"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise Refusal(reasons.APP_CONFIG, problem="a value is missing", private=repr(error)) from None
    for key, value in {**values, "clientapp": client}.items():
        if not isinstance(value, str) or not _VALUE.fullmatch(value):
            raise Refusal(reasons.APP_CONFIG, problem=f"{key} is not a plain name", private=repr(value))
    return config


if __name__ == "__main__":
    sys.stdout.write(hashlib.sha256(build(APP)).hexdigest())
