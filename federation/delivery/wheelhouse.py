"""Fetch the wheels of a bundle from the package registry, and pin what the lock leaves open: PyTorch.

The lock in configs/locks/ names each other wheel by its SHA-256. PyTorch is a range in constraints.txt: pip takes the
build that this machine's settings lead to, for the CPU or for CUDA. The bundle's own lock then names that build, and
the libraries that only this build needs, by their SHA-256.
"""

import hashlib
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from email import message_from_bytes
from email.message import Message
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import parse_wheel_filename

from federation.delivery import reasons
from federation.delivery.locks import GLIBC_MINOR, OF_TORCH, platforms_of
from models.refusal import Refusal

_PIN = re.compile(
    r"^(?P<name>[\w.-]+)==(?P<version>\S+)(?: ; (?P<marker>.+?))? \\\n(?P<hashes>(?:    --hash.*\n)+)", re.M
)


def fetch_wheels(source: Path, lock: str, pythons: Sequence[str], folder: Path) -> None:
    """Fetch the wheels of a lock and of PyTorch for Linux on x86_64 into `folder`. Raises Refusal E_BUILD_FAILED."""
    torch = re.search(r"^torch[<>=].*$", (source / "constraints.txt").read_text(encoding="utf-8"), re.M)
    assert torch
    for python in pythons:
        _download(_for_python(lock, python), python, folder, "--require-hashes", "--no-deps")
        _download(torch[0] + "\n", python, folder, "--no-deps")
        wheel = _wheel_for(folder, "torch", python)
        needs = [Requirement(text) for text in metadata_of(wheel).get_all("Requires-Dist", ())]
        of_build = [str(each) for each in needs if each.name.startswith(OF_TORCH) and _holds(each, python)]
        if of_build:
            _download("\n".join(of_build) + "\n", python, folder)


def bundle_lock(lock: str, wheels: Iterable[Path]) -> str:
    """Return the lock of a bundle: the role's lock without the wheels that the bundle lacks, and each other wheel."""
    digests = {sha256_of(path): path for path in wheels}
    text = "# All libraries of this bundle. pip installs nothing else: --require-hashes.\n"
    for pin in _PIN.finditer(lock):
        hashes = sorted(set(re.findall(r"[0-9a-f]{64}", pin["hashes"])) & digests.keys())
        if hashes:
            marker = f" ; {pin['marker']}" if pin["marker"] else ""
            text += _entry(f"{pin['name']}=={pin['version']}{marker}", hashes)
        for digest in hashes:
            digests.pop(digest)
    rest: dict[str, list[str]] = {}
    for digest, path in digests.items():
        name, version, _, _ = parse_wheel_filename(path.name)
        rest.setdefault(f"{name}=={version}", []).append(digest)
    return text + "".join(_entry(pin, sorted(rest[pin])) for pin in sorted(rest))


def metadata_of(wheel: Path) -> Message:
    """Return the METADATA of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name))
        return message_from_bytes(archive.read(name))


def needed_glibc_minor(wheels: Iterable[Path]) -> int:
    """Return the x of the oldest glibc 2.x that all wheels run on.

    The name of a manylinux wheel says it. A wheel named linux_x86_64 says nothing (a build of one's own, such as a
    distribution's build of PyTorch): the versions of glibc's symbols stand in its shared libraries.
    """
    found = GLIBC_MINOR
    for wheel in wheels:
        platforms = {tag.platform for tag in parse_wheel_filename(wheel.name)[3]}
        if platforms != {"linux_x86_64"}:
            continue
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if ".so" in Path(name).name:
                    symbols = re.findall(rb"\0GLIBC_2\.(\d+)", archive.read(name))
                    found = max([found, *map(int, symbols)])
    return found


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _entry(pin: str, hashes: Iterable[str]) -> str:
    return " \\\n".join([pin, *(f"    --hash=sha256:{digest}" for digest in hashes)]) + "\n"


def _for_python(lock: str, python: str) -> str:
    """Return the lock's libraries for one Python version. pip would judge the markers by the Python that runs it."""
    pins = [pin for pin in _PIN.finditer(lock) if not pin["marker"] or f'"{python}"' in pin["marker"]]
    return "".join(f"{pin['name']}=={pin['version']} \\\n{pin['hashes']}" for pin in pins)


def _download(requirements: str, python: str, folder: Path, *options: str) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", *options]
    command += ["--only-binary", ":all:", "--implementation", "cp", "--python-version", python]
    command += [word for platform in platforms_of() for word in ("--platform", platform)]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(requirements)
        file.flush()
        command += ["--dest", str(folder), "--requirement", file.name]
        if subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode:
            raise Refusal(reasons.BUILD_FAILED, step=f"fetching the wheels for Python {python}")


def _wheel_for(folder: Path, name: str, python: str) -> Path:
    interpreter = "cp" + python.replace(".", "")
    found = [path for path in folder.glob(f"{name}-*.whl") if {interpreter} & set(path.name.split("-")[2].split("."))]
    return found[0]


def _holds(requirement: Requirement, python: str) -> bool:
    linux = {"python_version": python, "sys_platform": "linux", "platform_system": "Linux", "extra": ""}
    return requirement.marker is None or requirement.marker.evaluate(linux)
