"""Computes with a network on the processor that [compute] names. All code that runs a network goes through `Compute`.

A network and its tensors are on the CPU, except inside `Compute.use`, which moves the network to the device and back.
So nothing outside (weights that are sent, files, scores) depends on where it was computed.

The same device, driver and software give the same bits. Other devices round differently: a study's sites need not
agree, and a score is computed on the CPU unless somebody chooses otherwise.
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from typing import Self

import torch
from torch import Tensor, nn

from models.checkpointing import checkpointed, has_batch_norm
from models.compute_settings import ComputeSettings, Precision
from models.gpu_devices import cuda_indices, gpu_numbers
from models.precision import gradients_repeat
from models.reasons import COMPUTE_DEVICE, COMPUTE_FAILED, COMPUTE_MEMORY, COMPUTE_MICRO_BATCH, COMPUTE_PRECISION
from models.refusal import Refusal
from models.replicas import Replicas

CPU = torch.device("cpu")
_DTYPES = {"auto": None, "fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
_FIRST_SCALE = 2.0**16  # of the loss in fp16; torch's default
_TOLERANCE = 1e-3  # of the matrix product that a device must agree on with the CPU


@dataclass(frozen=True)
class Compute:
    """A processor, and how to compute on it. Without arguments: the CPU, as if there were no [compute].

    `precision`: "auto" is fp32. `others`: GPUs that compute parts of the batches of training, beside `device`. For the
    other fields see `ComputeSettings`.
    """

    device: torch.device = CPU
    precision: Precision = "auto"
    micro_batch: int = 0
    checkpointing: bool = False
    prefetch: int = 0
    others: tuple[torch.device, ...] = ()

    @classmethod
    def open(cls, settings: ComputeSettings, *, threads: int = 0) -> Self:
        """Find the processor of the settings and check it; use `threads` cores of the CPU (0: all).

        Raises Refusal E_COMPUTE_DEVICE, E_COMPUTE_PRECISION.
        """
        if threads:
            torch.set_num_threads(threads)
        device, *others = _find(settings.device)
        dtype = _DTYPES[settings.precision]
        if dtype and not all(is_reliable(each, dtype) for each in (device, *others)):
            raise Refusal(COMPUTE_PRECISION, device=device.type, precision=settings.precision)
        return cls(
            device,
            settings.precision,
            settings.micro_batch,
            settings.checkpointing,
            settings.prefetch,
            tuple(others),
        )

    @property
    def dtype(self) -> torch.dtype | None:
        """The 16-bit type of matrix products and convolutions; None for float32."""
        return _DTYPES[self.precision]

    def memory_gb(self) -> float:
        """The memory of the smallest GPU, in GB."""
        devices = (self.device, *self.others)
        return float(min(torch.cuda.get_device_properties(each).total_memory for each in devices) / 1e9)

    def exact(self) -> Self:
        """The same processor in float32."""
        return replace(self, precision="fp32")

    def autocast(self) -> AbstractContextManager[None]:
        """The context of a forward pass."""
        return torch.autocast(self.device.type, self.dtype) if self.dtype else nullcontext()

    def scaler(self) -> torch.amp.GradScaler:
        """A scaler of the loss for one training. It does nothing except in fp16, whose small gradients would be 0."""
        return torch.amp.GradScaler(self.device.type, init_scale=_FIRST_SCALE, enabled=self.dtype is torch.float16)

    def move(self, tensor: Tensor) -> Tensor:
        """Return the tensor on the device; on the CPU, the tensor itself."""
        return tensor.to(self.device)

    def at_most(self, batch_size: int) -> int:
        """Return the number of scans to compute at once, where a batch can be divided without another result."""
        return min(batch_size, self.micro_batch or batch_size)

    def parts(self, network: nn.Module, batch_size: int) -> int:
        """Return the number of scans in each part of a training batch; 0 if the batch is not divided.

        Raises Refusal E_COMPUTE_MICRO_BATCH with batch norm: its statistics would be those of the parts.
        """
        if not self.micro_batch or self.micro_batch >= batch_size:
            return 0
        if has_batch_norm(network):
            raise Refusal(COMPUTE_MICRO_BATCH, batch_size=batch_size)
        return self.micro_batch

    @contextmanager
    def use(self, network: nn.Module) -> Iterator[None]:
        """Have the network on the device until the context ends, then again on the CPU, after errors too.

        Raises Refusal E_COMPUTE_MEMORY, E_COMPUTE_FAILED instead of the errors of torch.
        """
        with self._refusing():
            self._carry(network, self.device)
            try:
                yield
            finally:
                self._carry(network, CPU)

    @contextmanager
    def train(self, network: nn.Module) -> Iterator[Replicas]:
        """As `use`, for training: with checkpoints if the settings say so, and with copies on `others`."""
        with self.use(network), ExitStack() as checkpoints:
            replicas = Replicas.of(network, self.device, self.others)
            for each, _ in replicas.places if self.checkpointing else ():
                checkpoints.enter_context(checkpointed(each))
            yield replicas

    def _carry(self, network: nn.Module, device: torch.device) -> None:
        if self.device.type != "cpu":
            # In inference mode, the weights would become tensors that cannot be trained.
            with torch.inference_mode(False):
                network.to(device)

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            text = str(error)
            if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in text:
                raise Refusal(COMPUTE_MEMORY, device=self.device.type, private=text) from error
            if isinstance(error, _ACCELERATOR_ERRORS) or text.startswith(("CUDA", "cuDNN", "cuda runtime")):
                raise Refusal(COMPUTE_FAILED, device=self.device.type, private=text) from error
            raise


PROCESSOR = Compute()
_ACCELERATOR_ERRORS = (torch.AcceleratorError,) if hasattr(torch, "AcceleratorError") else ()  # since torch 2.8


@cache
def why_no_gpu(setting: str = "cuda") -> str:
    """Return why the GPUs of a setting ("cuda", "cuda:1", "cuda:0,1") cannot be used; "" if they can.

    The reason is for the site's own screen. The first call loads the driver; do not call it before a fork.
    """
    # As `nvidia-smi` and the device files count; CUDA's own order puts the fastest GPU first.
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    if not torch.backends.cuda.is_built():
        return "this PyTorch is built without CUDA"
    if not torch.cuda.is_available():
        return "PyTorch finds no GPU with a driver"
    indices = cuda_indices(setting, gpu_numbers())
    if not all(0 <= index < torch.cuda.device_count() for index in indices):
        return "this GPU cannot be reached"
    _make_repeatable()
    try:
        agrees = all(agrees_with_cpu(torch.device("cuda", index)) for index in indices)
    except RuntimeError as error:
        return str(error)
    return "" if agrees else "a product of matrices is wrong"


@cache
def is_reliable(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the device computes in hardware, and repeatably, with a 16-bit type.

    A CPU does not in bfloat16: torch 2.13 was wrong there, with AMX in ways that `gradients_repeat` does not find.
    """
    if device.type == "cpu" and dtype is torch.bfloat16:
        return False
    if device.type == "cuda" and dtype is torch.bfloat16 and not torch.cuda.is_bf16_supported(False):
        return False
    try:
        return gradients_repeat(device, dtype)
    except RuntimeError:
        return False


def devices_of(setting: str) -> list[torch.device]:
    """Return the devices that a setting names, without checking them."""
    if setting == "cpu":
        return [CPU]
    return [torch.device("cuda", max(0, index)) for index in cuda_indices(setting, gpu_numbers())]


def agrees_with_cpu(device: torch.device) -> bool:
    """Whether a small product of matrices on the device agrees with that of the CPU."""
    draws = torch.Generator().manual_seed(0)
    left, right = torch.randn(64, 256, generator=draws), torch.randn(256, 64, generator=draws)
    product = (left.to(device) @ right.to(device)).cpu()
    return torch.allclose(product, left @ right, rtol=_TOLERANCE, atol=_TOLERANCE)


def _find(setting: str) -> list[torch.device]:
    if setting == "cpu" or (setting == "auto" and why_no_gpu(setting)):
        return [CPU]
    if problem := why_no_gpu(setting):
        raise Refusal(COMPUTE_DEVICE, device=setting, private=problem)
    return devices_of(setting)


def _make_repeatable() -> None:
    """Choose algorithms that give the same bits each time, and real float32 instead of TF32.

    An operation without such an algorithm warns; torch 2.13 has them for all operations of our networks.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_deterministic_debug_mode("warn")
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
