"""What a bug report needs to know of a machine: versions, processor, memory, tools. It holds nothing private.

No path, host name, user name or setting is part of it, so it can be pasted in public. Only the metadata of packages is
read; no library is imported. If there is a GPU, a separate process asks it.
"""

import os
import platform
import re
import shutil
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from models.gpu_devices import driver_version, gpu_names, may_have_gpu

LIBRARIES = (
    *("torch", "monai", "flwr", "numpy", "scipy", "scikit-learn", "safetensors", "model-signing", "opacus"),
    *("pydicom", "pynetdicom", "dicomweb-client", "highdicom", "simpleitk", "nibabel", "hl7"),
    *("cryptography", "pydantic", "typer", "aiohttp", "grpcio", "ray", "mlflow", "fastapi", "uvicorn"),
)
CODECS = ("pylibjpeg", "pylibjpeg-openjpeg", "pylibjpeg-rle", "pyjpegls", "pillow", "python-gdcm")
# Debian's package to a command of it. Some of these tools are optional for a node or a server, others only for tests.
TOOLS = {
    "bubblewrap": "bwrap",
    "systemd": "systemd-run",
    "dcmtk": "storescu",
    "dicom3tools": "dciodvfy",
    "orthanc": "Orthanc",
    "nginx": "nginx",
    "postgresql": "psql",
    "chromium": "chromium",
    "acl": "setfacl",
    "npm": "npm",
    "NVIDIA driver": "nvidia-smi",
}
# Instruction sets on which the precision and the speed of PyTorch depend, as Linux names them.
_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16")
_SYSTEM_PATH = f"{os.defpath}:/usr/sbin:/usr/local/sbin"


def environment_report() -> str:
    """The report as lines of `name: value`."""
    facts = [
        ("fedthorax", version("fedthorax")),
        ("Python", f"{platform.python_implementation()} {platform.python_version()}"),
        ("OS", _system()),
        ("processor", _processor()),
        ("memory", _memory()),
        ("NVIDIA driver", driver_version()),
        ("GPUs", ", ".join(gpu_names())),
        ("networks", _networks()),
        *((f"libraries ({state})", names) for state, names in _packages(LIBRARIES)),
        *((f"codecs ({state})", names) for state, names in _packages(CODECS)),
        *_tools(),
    ]
    return "".join(f"{name}: {value}\n" for name, value in facts if value)


def _system() -> str:
    """Distribution, kernel and C library. Of the kernel only the numbers: who builds one may name it as they like."""
    try:
        system = platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    except OSError:
        system = platform.system()
    kernel = re.match(r"[\d.]*", platform.release())
    return ", ".join(filter(None, (system, f"kernel {kernel[0] if kernel else ''}", " ".join(platform.libc_ver()))))


def _processor() -> str:
    """Architecture, cores, and the instruction sets of `_FLAGS`."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        found = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    flags = set(found[1].split()) if found else set()
    return ", ".join([platform.machine(), f"{usable} of {os.cpu_count()} cores", *(f for f in _FLAGS if f in flags)])


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.1f} GB"
    except (OSError, ValueError):
        return "unknown"


def _networks() -> str:
    """The processor that networks are computed on by default, and whether it works."""
    if not may_have_gpu("auto"):
        return "computed on the CPU"
    from models.compute_settings import ComputeSettings
    from models.processor_report import report

    found = report(ComputeSettings())
    problem = "; a GPU is there and cannot be used" if found.problem else ""
    repeats = "" if found.repeats else "; a training step does not repeat to the bit"
    return f"{found.says}{found.detail and f' ({found.detail})'}{problem}{repeats}"


def _packages(names: Iterable[str]) -> list[tuple[str, str]]:
    """Installed ones with their versions, and those that are missing."""
    installed, missing = [], []
    for name in names:
        try:
            installed.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    return [("installed", ", ".join(installed)), ("missing", ", ".join(missing))]


def _tools() -> list[tuple[str, str]]:
    """Which tools of `TOOLS` can be found. Services lie outside of an ordinary user's search path."""
    path = f"{os.environ.get('PATH', '')}:{_SYSTEM_PATH}"
    found = {name: shutil.which(command, path=path) is not None for name, command in TOOLS.items()}
    return [
        ("tools (found)", ", ".join(name for name, is_there in found.items() if is_there)),
        ("tools (not found)", ", ".join(name for name, is_there in found.items() if not is_there)),
    ]
