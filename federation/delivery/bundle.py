"""Make the offline bundle of a role: one folder with all that a hospital needs to install it without a network.

BUNDLE             what it is and what it needs, one KEY=VALUE a line, read by install.sh
install.sh         checks the machine, installs, and undoes it
requirements.txt   the lock of this bundle: each library with its SHA-256
wheelhouse/        the wheels, the project's own and pip's among them
systemd/           units for the system and for one user
doc/               the documentation, as text
sbom.cdx.json      the bill of materials; licences/ has the licence of each library
SHA256SUMS         and its signature, SHA256SUMS.sig
"""

import shutil
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from federation.delivery.archives import files_below
from federation.delivery.locks import EXTRAS
from federation.delivery.wheelhouse import bundle_lock, needed_glibc_minor

WHEELS = "wheelhouse"
# Beside the node's, which only pulls from the server: the ports that a role's settings name by default.
PORTS = {"node": (), "server": (8443,), "clinic": (8765,)}
UNITS = {"node": ("node", "ingest", "listen", "app"), "server": ("server",), "clinic": ("clinic",)}
_COMPILED = 1.4  # installed size over the wheels' unpacked size, for the compiled modules
_MB = 1_000_000


@dataclass(frozen=True)
class BundleParts:
    """What a bundle is made of. `lock`: the text of the role's lock; `pythons`: such as "3.11"."""

    source: Path
    role: str
    version: str
    pythons: Sequence[str]
    lock: str
    wheels: Path

    @property
    def name(self) -> str:
        pythons = "-".join(f"py{python.replace('.', '')}" for python in self.pythons)
        return f"fedthorax-{self.version}-{self.role}-{pythons}-linux-x86_64"


def write_bundle(parts: BundleParts, out: Path) -> Path:
    """Write the folder of a bundle below `out`, and return it. Its wheels are moved from `parts.wheels`.

    The checksums are not written yet: the bill of materials and the licences belong to them.
    """
    folder = out / parts.name
    folder.mkdir(parents=True)
    wheels = sorted(parts.wheels.glob("*.whl"))
    lock = bundle_lock(parts.lock, wheels)
    own = f"fedthorax=={parts.version}"
    lock = lock.replace(own, f"fedthorax[{','.join(EXTRAS[parts.role])}]=={parts.version}")
    (folder / "requirements.txt").write_text(lock, encoding="utf-8")
    (folder / "BUNDLE").write_text(_described(parts, wheels), encoding="utf-8")
    (folder / WHEELS).mkdir()
    for wheel in wheels:
        shutil.move(wheel, folder / WHEELS / wheel.name)
    (folder / "install.sh").write_text(files(__package__).joinpath("install.sh").read_text("utf-8"), encoding="utf-8")
    (folder / "install.sh").chmod(0o755)
    for scope, kept in (("system", "systemd"), ("user", "systemd-user")):
        units = (
            path for name in UNITS[parts.role] for path in (parts.source / "docs" / kept).glob(f"fedthorax-{name}@*")
        )
        _copy(units, folder / "systemd" / scope)
    pages = [parts.source / name for name in ("README.md", "LICENSE", "CHANGELOG.md", "SECURITY.md")]
    _copy([*pages, *(parts.source / "docs").glob("*.md")], folder / "doc")
    return folder


def _described(parts: BundleParts, wheels: Sequence[Path]) -> str:
    packed = sum(wheel.stat().st_size for wheel in wheels)
    unpacked = sum(_unpacked(wheel) for wheel in wheels) / len(parts.pythons)
    values = {
        "format": 1,
        "role": parts.role,
        "version": parts.version,
        "pythons": " ".join(parts.pythons),
        "glibc": f"2.{needed_glibc_minor(wheels)}",
        "ports": " ".join(map(str, PORTS[parts.role])),
        "mb_packed": round(packed / _MB),
        "mb_installed": round(unpacked * _COMPILED / _MB) + 1,
    }
    return "".join(f"{key}={value}\n" for key, value in values.items())


def _unpacked(wheel: Path) -> int:
    with zipfile.ZipFile(wheel) as archive:
        return sum(entry.file_size for entry in archive.infolist())


def _copy(paths: Iterable[Path], folder: Path) -> None:
    folder.mkdir(parents=True)
    for path in paths:
        shutil.copyfile(path, folder / path.name)


def sizes(folder: Path) -> tuple[int, int]:
    """Return the number of files of a bundle and their size in bytes."""
    paths = files_below(folder)
    return len(paths), sum(path.stat().st_size for path in paths)
