"""The GPU that a study's code may reach: the one of [compute] device, and no other.

With bubblewrap, the sandbox shows this GPU's device files and, if the driver's libraries are outside of the system's
folders, these files too. With systemd, the service's unit shows the device files. Inside, `reachable` checks that no
other GPU can be opened.
"""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from models.gpu_devices import FILES, device_files, gpu_numbers

# The libraries that CUDA's runtime loads from the driver: libcuda itself, its compiler, and what they load.
_DRIVER = re.compile(r"^\s*lib(?:cuda|cudadebugger|nvidia-[\w-]+)\.so[.\d]*\s.*=>\s(/\S+)$", re.MULTILINE)
_SHOWN = tuple(map(Path, ("/usr", "/bin", "/lib", "/lib32", "/lib64")))
_LIST_SECONDS = 20.0


def gpu_binds(device: str, files: Path | None = None) -> list[str]:
    """Return bubblewrap's arguments for the setting `device`; [] if it needs no GPU or there is none."""
    shown = device_files(device, files)
    if not shown:
        return []
    libraries = driver_libraries(list_libraries())
    return [
        word
        for option, paths in (("--dev-bind", shown), ("--ro-bind", libraries))
        for path in paths
        for word in (option, str(path), str(path))
    ]


def list_libraries() -> str:
    """Return the libraries that the dynamic linker finds, as ldconfig(8) lists them; "" if it cannot be asked."""
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    try:
        done = subprocess.run(
            ["ldconfig", "-p"],
            capture_output=True,
            text=True,
            timeout=_LIST_SECONDS,
            check=True,
            env={"PATH": path, "LANG": "C.UTF-8"},
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout


def driver_libraries(listed: str) -> list[Path]:
    """Return the driver's libraries that the sandbox does not show anyway, with the files to which their names link."""
    found = [Path(name) for name in _DRIVER.findall(listed)]
    names = dict.fromkeys(name for path in found if path.exists() for name in (path, path.resolve()))
    return [name for name in names if not any(name.is_relative_to(folder) for folder in _SHOWN)]


def reachable(device: str, files: Path | None = None) -> Iterator[tuple[str, str]]:
    """Yield each GPU that this process can open although the setting `device` does not name it.

    A file that is there may still be closed, by its rights or by the service's device policy, so it is opened.
    """
    allowed = set(device_files(device, files))
    for number in gpu_numbers(files):
        path = (files or FILES) / f"nvidia{number}"
        if path not in allowed and _can_open(path):
            yield "a GPU that [compute] does not name", str(path)


def _can_open(path: Path) -> bool:
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True
