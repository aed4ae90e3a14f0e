"""Finds the GPUs of this machine by the files of NVIDIA's driver. Loads neither the driver nor torch.

/dev/nvidia0, /dev/nvidia1, ...   one file for each GPU
/dev/nvidiactl, /dev/nvidia-uvm   needed with any GPU
/proc/driver/nvidia               the driver's version and the names of the GPUs

A process can use the GPUs whose files it can open. In a sandbox with only /dev/nvidia1, this GPU is CUDA's device 0.
"""

import re
from collections.abc import Sequence
from pathlib import Path

FILES = Path("/dev")
DRIVER = Path("/proc/driver/nvidia")
WSL = Path("/dev/dxg")  # Windows' GPU in its Linux, without NVIDIA's files
_GPU = re.compile(r"nvidia(\d{1,2})")
_COMMON = ("nvidiactl", "nvidia-uvm")
_VERSION = re.compile(r"^NVRM version:.*?\s(\d{3,}\.\d+(?:\.\d+)?)\s", re.MULTILINE)
_MODEL = re.compile(r"^Model:\s*(.+?)\s*$", re.MULTILINE)


def gpu_numbers(files: Path | None = None) -> list[int]:
    """Return the numbers of the GPUs with a device file, as `nvidia-smi` shows them."""
    found = (_GPU.fullmatch(path.name) for path in (files or FILES).glob("nvidia*"))
    return sorted(int(match[1]) for match in found if match)


def may_have_gpu(device: str) -> bool:
    """Whether the setting `device` may mean a GPU of this machine."""
    return device.startswith("cuda") or (device == "auto" and bool(gpu_numbers() or WSL.exists()))


def device_files(device: str, files: Path | None = None) -> list[Path]:
    """Return the existing device files that a process needs for the setting `device`; none for "cpu".

    "auto" and "cuda" mean the first GPU. None either if one of the GPUs is not there.
    """
    folder, numbers = files or FILES, gpu_numbers(files)
    wanted = wanted_gpus(device, numbers)
    if not wanted or not set(wanted) <= set(numbers):
        return []
    names = (*_COMMON, *(f"nvidia{number}" for number in wanted))
    return [path for path in (folder / name for name in names) if path.exists()]


def wanted_gpus(device: str, numbers: Sequence[int]) -> list[int]:
    """Return the numbers of the GPUs that the setting `device` means; none for "cpu", or without any GPU."""
    if device == "cpu" or not numbers:
        return []
    _, colon, wanted = device.partition(":")
    return [int(number) for number in wanted.split(",")] if colon else [numbers[0]]


def cuda_indices(device: str, numbers: Sequence[int]) -> list[int]:
    """Return CUDA's indices of the GPUs that the setting `device` means, among the GPUs with these `numbers`.

    Without device files (as in WSL), CUDA's index is the number itself. -1 for a GPU that is not among them.
    """
    _, colon, wanted = device.partition(":")
    if not colon:
        return [0]
    named = [int(number) for number in wanted.split(",")]
    if not numbers:
        return named
    return [list(numbers).index(number) if number in numbers else -1 for number in named]


def driver_version(driver: Path | None = None) -> str:
    """Return the version of NVIDIA's kernel driver; "" if it is not loaded."""
    found = _VERSION.search(_read((driver or DRIVER) / "version"))
    return found[1] if found else ""


def gpu_names(driver: Path | None = None) -> list[str]:
    """Return the model names of the GPUs that the driver serves, sorted by their place on the bus."""
    files = sorted((driver or DRIVER).glob("gpus/*/information"))
    return [match[1] for match in (_MODEL.search(_read(path)) for path in files) if match]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
