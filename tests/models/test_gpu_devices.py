"""GPUs are found by the driver's files; here these are ordinary files."""

from pathlib import Path

import pytest

from models.gpu_devices import cuda_indices, device_files, driver_version, gpu_names, gpu_numbers


@pytest.fixture
def dev(tmp_path: Path) -> Path:
    for name in ("nvidia0", "nvidia1", "nvidia10", "nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset"):
        (tmp_path / name).touch()
    return tmp_path


def test_gpus_are_numbered_as_their_files(dev: Path, tmp_path: Path) -> None:
    assert gpu_numbers(dev) == [0, 1, 10]
    assert gpu_numbers(tmp_path / "nothing") == []


@pytest.mark.parametrize(
    ("device", "gpus"),
    [
        ("auto", ["nvidia0"]),
        ("cuda", ["nvidia0"]),
        ("cuda:1", ["nvidia1"]),
        ("cuda:10", ["nvidia10"]),
        ("cuda:10,0", ["nvidia10", "nvidia0"]),
    ],
)
def test_a_setting_needs_its_gpus_and_the_common_files(dev: Path, device: str, gpus: list[str]) -> None:
    assert [path.name for path in device_files(device, dev)] == ["nvidiactl", "nvidia-uvm", *gpus]


def test_no_file_is_needed_without_a_gpu(dev: Path, tmp_path: Path) -> None:
    assert device_files("cpu", dev) == device_files("cuda:2", dev) == device_files("auto", tmp_path / "nothing") == []
    assert device_files("cuda:0,2", dev) == [], "all or none"


def test_first_gpu_is_the_first_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "nvidia3").touch()
    assert [path.name for path in device_files("auto", tmp_path)] == ["nvidia3"]


@pytest.mark.parametrize(
    ("device", "numbers", "indices"),
    [
        ("auto", [0, 1], [0]),
        ("cuda", [], [0]),
        ("cuda:1", [0, 1], [1]),
        ("cuda:1", [1], [0]),  # in a sandbox that shows only this GPU
        ("cuda:1", [], [1]),  # no device files
        ("cuda:2", [0, 1], [-1]),
        ("cuda:3,1", [1, 3], [1, 0]),
        ("cuda:1,2", [], [1, 2]),
        ("cuda:0,2", [0, 1], [0, -1]),
    ],
)
def test_cuda_counts_only_the_gpus_that_a_process_can_reach(
    device: str, numbers: list[int], indices: list[int]
) -> None:
    assert cuda_indices(device, numbers) == indices


@pytest.mark.parametrize(
    ("line", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023", "535.104.05"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (a@b)", "580.65.06"),
        ("something else", ""),
    ],
)
def test_driver_version_is_read_from_its_file(tmp_path: Path, line: str, version: str) -> None:
    (tmp_path / "version").write_text(f"{line}\nGCC version:  gcc version 12.2.0\n")
    assert driver_version(tmp_path) == version


def test_names_of_gpus_are_read_from_the_driver(tmp_path: Path) -> None:
    for bus, model in (("0000:41:00.0", "NVIDIA A100 80GB PCIe"), ("0000:01:00.0", "NVIDIA L4")):
        folder = tmp_path / "gpus" / bus
        folder.mkdir(parents=True)
        (folder / "information").write_text(f"Model: \t\t {model}\nIRQ:   \t\t 131\nGPU UUID: \t GPU-0\n")
    assert gpu_names(tmp_path) == ["NVIDIA L4", "NVIDIA A100 80GB PCIe"]
    assert driver_version(tmp_path / "nothing") == "" and gpu_names(tmp_path / "nothing") == []
