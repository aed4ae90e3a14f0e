"""`make lock`: lists the libraries of each role with the SHA-256 of each wheel, in configs/locks/.

pyproject.toml says which libraries a role needs, and constraints.txt which version of each. uv asks the registry for
the wheels' hashes; the wheels are not downloaded. A lock holds the wheels for Linux on x86_64 with glibc 2.28 or newer
and the Python versions below, and no source archive: to build one runs its code.

**PyTorch is not in a lock.** It is a range in constraints.txt, because its builds differ between machines: for the CPU,
or for CUDA with 2.5 GB of libraries of its own. A bundle holds one build, and the bundle's own lock pins it with its
hashes (`federation.delivery.wheelhouse`).

https://packaging.python.org/en/latest/specifications/pylock-toml/
"""

import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from packaging.markers import Marker
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import parse_wheel_filename

from federation.delivery import reasons
from models.refusal import Refusal

ROLES = ("node", "server", "clinic")
# The extras of pyproject.toml that a role needs. The server's machine can also be that of the tracking server.
EXTRAS = {"node": ("node",), "server": ("server", "tracking"), "clinic": ("clinic",)}
PYTHONS = ("3.11", "3.12", "3.13")
GLIBC_MINOR = 28  # RHEL 8, Debian 10, Ubuntu 20.04 and newer
# PyTorch, and what only a CUDA build of it needs.
OF_TORCH = ("torch", "triton", "nvidia-", "cuda-")
_INSTALLER = "pip"  # a bundle brings its own
_HEAD = """\
# Libraries of the role {role}, without PyTorch: Linux x86_64, glibc 2.{glibc} or newer, Python {pythons}.
# Made by `make lock` from pyproject.toml and constraints.txt. Do not edit.
"""


def lock_file(source: Path, role: str) -> Path:
    """Return the path of a role's lock."""
    return source / "configs" / "locks" / f"requirements-{role}.txt"


def write_locks(source: Path) -> None:
    """Resolve each role with uv and write its lock. Needs the package registry.

    Raises Refusal: E_BUILD_FAILED, E_LOCK_NO_WHEEL.
    """
    for role in ROLES:
        text = lock_text(role, _resolved(source, role))
        path = lock_file(source, role)
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        sys.stdout.write(f"{path.name}: {len(locked(text))} libraries, {text.count('--hash')} wheels\n")


def lock_text(role: str, packages: Iterable[dict[str, Any]]) -> str:
    """Return the lock of a role. `packages`: the entries of a pylock.toml. Raises Refusal E_LOCK_NO_WHEEL."""
    text = _HEAD.format(role=role, glibc=GLIBC_MINOR, pythons=", ".join(PYTHONS))
    for package in sorted(packages, key=lambda package: package["name"]):
        if package["name"].startswith(OF_TORCH):
            continue
        pythons = [python for python in PYTHONS if _needed(package.get("marker"), python)]
        if not pythons:
            continue
        hashes: set[str] = set()
        for python in pythons:
            if not (fitting := _wheels(package, python)):
                raise Refusal(reasons.LOCK_NO_WHEEL, library=package["name"], python=python)
            hashes |= fitting
        marker = "" if len(pythons) == len(PYTHONS) else " ; " + _only(pythons)
        lines = [
            f"{package['name']}=={package['version']}{marker}",
            *(f"    --hash=sha256:{h}" for h in sorted(hashes)),
        ]
        text += " \\\n".join(lines) + "\n"
    return text


def locked(text: str) -> dict[str, str]:
    """Return the versions that a lock names, by library."""
    lines = [line for line in text.splitlines() if line and not line.startswith((" ", "#"))]
    return dict(line.split()[0].split("==", 1) for line in lines)


def tags_of(python: str, glibc_minor: int = GLIBC_MINOR) -> list[Tag]:
    """Return the tags of the wheels that fit a Python version such as "3.11", the best first."""
    version = tuple(int(part) for part in python.split("."))
    platforms = platforms_of(glibc_minor)
    interpreter = "cp" + python.replace(".", "")
    return [*cpython_tags(version, platforms=platforms), *compatible_tags(version, interpreter, platforms)]


def platforms_of(glibc_minor: int = GLIBC_MINOR) -> list[str]:
    """Return the platforms of the wheels that run with a version of glibc, the newest first."""
    new = [f"manylinux_2_{minor}_x86_64" for minor in range(glibc_minor, 4, -1)]
    return [*new, "manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64"]


def _resolved(source: Path, role: str) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as temporary:
        asked, out = Path(temporary) / "asked.in", Path(temporary) / "pylock.toml"
        asked.write_text(f"{_INSTALLER}\n", encoding="utf-8")
        command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--universal", "--no-config"]
        command += ["--python-version", PYTHONS[0], "--constraint", "constraints.txt"]
        command += [word for extra in EXTRAS[role] for word in ("--extra", extra)]
        command += ["--format", "pylock.toml", "--output-file", str(out), "pyproject.toml", str(asked)]
        if subprocess.run(command, cwd=source, stdout=subprocess.DEVNULL, check=False).returncode:
            raise Refusal(reasons.BUILD_FAILED, step=f"resolving the libraries of the role {role}")
        packages: list[dict[str, Any]] = tomllib.loads(out.read_text(encoding="utf-8"))["packages"]
    return packages


def _wheels(package: dict[str, Any], python: str) -> set[str]:
    """Return the SHA-256 of the package's wheels that fit a Python version."""
    tags = set(tags_of(python))
    found = set()
    for wheel in package.get("wheels", ()):
        name = wheel.get("name") or wheel["url"].rpartition("/")[2].replace("%2B", "+")
        if tags & parse_wheel_filename(name)[3]:
            found.add(wheel["hashes"]["sha256"])
    return found


def _needed(marker: str | None, python: str) -> bool:
    linux = {
        "implementation_name": "cpython",
        "os_name": "posix",
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": f"{python}.0",
        "python_version": python,
        "sys_platform": "linux",
    }
    return marker is None or Marker(marker).evaluate(linux)


def _only(pythons: list[str]) -> str:
    return " or ".join(f'python_version == "{python}"' for python in pythons)


if __name__ == "__main__":
    write_locks(Path(__file__).resolve().parents[2])
