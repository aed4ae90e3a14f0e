"""Reports which processor [compute] means on this machine, and whether it works.

A driver may crash or hang, and a process that has loaded it should not fork. So a separate process asks it:

    python -P -m models.processor_report SETTINGS    ComputeSettings as JSON; prints a ProcessorReport as JSON
"""

import subprocess
import sys
from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ValidationError

from models.compute_settings import ComputeSettings
from models.gpu_devices import driver_version, may_have_gpu
from models.reasons import COMPUTE_DEVICE
from models.refusal import Refusal

SECONDS = 120.0  # importing torch from a slow disk for the first time takes long


class ProcessorReport(BaseModel):
    """What a site computes with.

    `device`: "cpu", or "cuda:0" as CUDA counts, or "cuda:0, cuda:1"; "" if the settings are refused, then `refused` is
    the code. `name`: the GPU's, or those of several. `precision`: "fp32", "bf16" or "fp16". `free_gb`, `total_gb`:
    memory of the GPU with the least free. `driver`: NVIDIA's version. `repeats`: whether a small training step gives
    the same bits each time. `problem`: why a GPU is not used; only for the site's own screen.
    """

    device: str = ""
    name: str = ""
    precision: str = ""
    free_gb: float | None = None
    total_gb: float | None = None
    driver: str = ""
    repeats: bool = True
    refused: str = ""
    problem: str = ""

    @property
    def says(self) -> str:
        """The processor and its precision, in words."""
        if self.refused:
            return f"{self.refused}: the settings in [compute] cannot be used here"
        where = "the CPU" if self.device == "cpu" else f"the GPU {self.name}".rstrip()
        return f"networks are computed on {where}" + (f", in {self.precision}" if self.precision else "")

    @property
    def detail(self) -> str:
        """Memory and driver of a GPU."""
        if self.free_gb is None:
            return ""
        return f"{self.free_gb:.1f} of {self.total_gb:.1f} GB free, driver {self.driver or 'unknown'}"


def report(
    settings: ComputeSettings,
    *,
    seconds: float = SECONDS,
    inside: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> ProcessorReport:
    """Examine the processor in a separate process, unless the settings can only mean the CPU.

    In that case torch is not imported. `inside`: the words before the
    process's command, such as those of a sandbox; `environment`: all of its variables.
    """
    if not may_have_gpu(settings.device) and settings.precision == "auto":
        return ProcessorReport(device="cpu", precision="fp32")
    command = [*inside, sys.executable, "-P", "-m", "models.processor_report", settings.model_dump_json()]
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=seconds, check=True, stdin=subprocess.DEVNULL, env=environment
        )
        return ProcessorReport.model_validate_json(done.stdout)
    except (OSError, subprocess.SubprocessError, ValidationError) as error:
        output = getattr(error, "stderr", None) or b""
        problem = f"{type(error).__name__}: {output.decode(errors='replace')[-500:]}"
        return ProcessorReport(refused=COMPUTE_DEVICE.code, problem=problem)


def examine(settings: ComputeSettings) -> ProcessorReport:
    """Examine the processor of the settings in this process; this loads torch and the driver."""
    import torch

    from models.compute import Compute, why_no_gpu
    from models.precision import gradients_repeat

    try:
        compute = Compute.open(settings)
        devices = (compute.device, *compute.others)
        repeats = all(gradients_repeat(device, compute.dtype) for device in devices)
    except Refusal as refusal:
        return ProcessorReport(refused=refusal.code, problem=refusal.private or refusal.says)
    except RuntimeError as error:
        return ProcessorReport(refused=COMPUTE_DEVICE.code, problem=str(error))
    precision = {None: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[compute.dtype]
    found = ProcessorReport(device=", ".join(map(str, devices)), precision=precision, repeats=repeats)
    if compute.device.type == "cpu":
        wanted = settings.device == "auto" and may_have_gpu(settings.device)
        return found.model_copy(update={"problem": why_no_gpu(settings.device) if wanted else ""})
    free, total = min(torch.cuda.mem_get_info(device) for device in devices)
    more = {"name": " and ".join(map(torch.cuda.get_device_name, devices)), "driver": driver_version()}
    return found.model_copy(update={**more, "free_gb": free / 1e9, "total_gb": total / 1e9})


if __name__ == "__main__":
    sys.stdout.write(examine(ComputeSettings.model_validate_json(sys.argv[1])).model_dump_json())
