"""What will be used and whether it works, asked in a separate process. GPUs are imitated."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from models import compute, gpu_devices, processor_report
from models.compute import Compute
from models.compute_settings import ComputeSettings
from models.gpu_devices import may_have_gpu
from models.processor_report import ProcessorReport, examine, report

CPU = ComputeSettings(device="cpu", precision="fp32")


@pytest.fixture
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("nvidia0", "nvidia1"):
        (tmp_path / name).touch()
    monkeypatch.setattr(gpu_devices, "FILES", tmp_path)
    return monkeypatch


@pytest.mark.slow
def test_separate_process_examines_the_processor() -> None:
    found = report(CPU)
    assert found == ProcessorReport(device="cpu", precision="fp32")
    assert found.says == "networks are computed on the CPU, in fp32" and not found.detail
    environment = {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    assert report(CPU, inside=("nice", "-n", "1"), environment=environment) == found


def test_torch_is_not_needed_to_say_that_there_is_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys; from models.processor_report import report; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"False\n"
    monkeypatch.setattr(gpu_devices, "FILES", tmp_path)
    monkeypatch.setattr(processor_report.subprocess, "run", lambda *_, **__: pytest.fail("a process was started"))
    assert not may_have_gpu("auto")
    expected = ProcessorReport(device="cpu", precision="fp32")
    assert report(ComputeSettings()) == report(ComputeSettings(device="cpu")) == expected


@pytest.mark.parametrize("device", ["auto", "cuda:1"])
def test_process_is_asked_about_a_gpu(two_gpus: pytest.MonkeyPatch, device: str) -> None:
    known = ProcessorReport(device="cuda:0", name="NVIDIA L4", precision="fp32")
    asked = []

    def run(command: list[str], **_: object) -> SimpleNamespace:
        asked.append(ComputeSettings.model_validate_json(command[-1]))
        return SimpleNamespace(stdout=known.model_dump_json().encode())

    two_gpus.setattr(processor_report.subprocess, "run", run)
    settings = ComputeSettings(device=device)
    assert report(settings) == known
    assert asked == [settings]


@pytest.mark.parametrize(
    "ends", ["raise SystemExit(3)", "import os; os.abort()", "print('{')", "import time; time.sleep(60)"]
)
def test_driver_that_crashes_or_hangs_becomes_a_refusal(two_gpus: pytest.MonkeyPatch, ends: str) -> None:
    run = subprocess.run
    two_gpus.setattr(
        processor_report.subprocess, "run", lambda _, **options: run([sys.executable, "-c", ends], **options)
    )
    found = report(ComputeSettings(), seconds=1.5)
    assert found.refused == "E_COMPUTE_DEVICE" and found.problem
    assert found.problem not in found.says


def test_settings_that_cannot_be_used_are_reported_with_their_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    compute.why_no_gpu.cache_clear()
    found = examine(ComputeSettings(device="cuda:3"))
    assert found.refused == "E_COMPUTE_DEVICE" and found.problem
    assert "E_COMPUTE_DEVICE" in found.says


def test_a_gpu_that_auto_cannot_use_is_a_problem(two_gpus: pytest.MonkeyPatch) -> None:
    two_gpus.setattr(torch.cuda, "is_available", lambda: False)
    compute.why_no_gpu.cache_clear()
    found = examine(ComputeSettings())
    assert (found.device, found.refused) == ("cpu", "")
    assert found.problem
    assert not examine(CPU).problem, "the CPU was chosen"


def test_memory_name_and_driver_of_a_gpu_are_reported(two_gpus: pytest.MonkeyPatch, tmp_path: Path) -> None:
    two_gpus.setattr(Compute, "open", lambda _: Compute(torch.device("cuda", 0), precision="bf16"))
    two_gpus.setattr("models.precision.gradients_repeat", lambda device, dtype: dtype is not torch.bfloat16)
    two_gpus.setattr(torch.cuda, "mem_get_info", lambda device: (20_500_000_000, 24_000_000_000))
    two_gpus.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA L4")
    two_gpus.setattr(gpu_devices, "DRIVER", tmp_path)
    (tmp_path / "version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat\n")
    found = examine(ComputeSettings(device="cuda"))
    assert found.says == "networks are computed on the GPU NVIDIA L4, in bf16"
    assert found.detail == "20.5 of 24.0 GB free, driver 535.104.05"
    assert not found.repeats


def test_several_gpus_are_reported_with_the_least_memory(two_gpus: pytest.MonkeyPatch) -> None:
    first, second = torch.device("cuda", 0), torch.device("cuda", 1)
    two_gpus.setattr(Compute, "open", lambda _: Compute(first, precision="fp32", others=(second,)))
    two_gpus.setattr("models.precision.gradients_repeat", lambda device, dtype: device == first)
    free = {first: 20_000_000_000, second: 8_000_000_000}
    two_gpus.setattr(torch.cuda, "mem_get_info", lambda device: (free[device], 24_000_000_000))
    two_gpus.setattr(torch.cuda, "get_device_name", lambda device: f"NVIDIA L{device.index}")
    found = examine(ComputeSettings(device="cuda:0,1"))
    assert found.says == "networks are computed on the GPU NVIDIA L0 and NVIDIA L1, in fp32"
    assert (found.device, found.free_gb, found.repeats) == ("cuda:0, cuda:1", 8.0, False)
