"""The processor of [compute]: found, checked or refused with a code. GPUs are imitated."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from models import compute as module
from models import precision
from models.compute import PROCESSOR, Compute, agrees_with_cpu, why_no_gpu
from models.compute_settings import ComputeSettings
from models.network import build_network
from models.network_settings import NetworkSettings
from models.refusal import Refusal
from tests.helpers.fake_gpu import GPU, fake_gpu


def network(norm: str = "batch") -> nn.Module:
    settings = {"architecture": "resnet10", "widen_factor": 0.0625, "norm": norm}
    return build_network(NetworkSettings.model_validate(settings), seed=1)


def opened(**settings: object) -> Compute:
    module.why_no_gpu.cache_clear()
    module.is_reliable.cache_clear()
    return Compute.open(ComputeSettings.model_validate(settings))


def refused(**settings: object) -> Refusal:
    with pytest.raises(Refusal) as caught:
        opened(**settings)
    return caught.value


@pytest.fixture(autouse=True)
def _ask_anew() -> Iterator[None]:
    yield
    module.why_no_gpu.cache_clear()
    module.is_reliable.cache_clear()


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A machine whose PyTorch finds one GPU that computes correctly."""
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(module, "agrees_with_cpu", lambda device: True)
    monkeypatch.setattr(module, "gpu_numbers", lambda: [0])
    yield monkeypatch
    torch.set_deterministic_debug_mode("default")
    torch.backends.cudnn.allow_tf32 = True


# --- which processor --------------------------------------------------------------------------------------


def test_settings_name_a_device() -> None:
    assert ComputeSettings().device == "auto"
    assert ComputeSettings(device="cuda:0,1").device == "cuda:0,1"
    for wrong in ("gpu", "cuda:", "cuda:-1", "cuda0", "mps", "", "cuda:0,", "cuda:0, 1", "cuda:0,0", "cuda:1,01"):
        with pytest.raises(ValueError, match="device"):
            ComputeSettings(device=wrong)


def test_auto_is_the_cpu_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert opened() == opened(device="cpu") == PROCESSOR


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refusal = refused(device="cuda:1")
    assert refusal.code == "E_COMPUTE_DEVICE"
    assert "cuda:1" in refusal.says and "node check" in refusal.remedy


def test_auto_is_the_gpu_if_it_works(one_gpu: pytest.MonkeyPatch) -> None:
    assert opened().device == opened(device="cuda").device == opened(device="cuda:0").device == torch.device("cuda", 0)
    assert opened(device="cpu").device.type == "cpu"
    assert opened().dtype is None, "float32, until somebody asks for less"
    assert refused(device="cuda:1").code == "E_COMPUTE_DEVICE"


def test_several_gpus_are_all_checked(one_gpu: pytest.MonkeyPatch) -> None:
    assert refused(device="cuda:0,1").code == "E_COMPUTE_DEVICE", "there is one"
    one_gpu.setattr(torch.cuda, "device_count", lambda: 3)
    one_gpu.setattr(module, "gpu_numbers", lambda: [0, 2, 5])
    found = opened(device="cuda:5,0")
    assert (found.device, found.others) == (torch.device("cuda", 2), (torch.device("cuda", 0),))
    sizes = {2: 24e9, 0: 12e9}
    one_gpu.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=sizes[device.index])
    )
    assert found.memory_gb() == 12
    one_gpu.setattr(module, "agrees_with_cpu", lambda device: device.index == 2)
    assert refused(device="cuda:5,0").code == "E_COMPUTE_DEVICE", "the second computes wrongly"


def test_a_gpu_computes_the_same_bits_each_time(one_gpu: pytest.MonkeyPatch) -> None:
    opened(device="cuda")
    assert torch.are_deterministic_algorithms_enabled() and torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.backends.cudnn.benchmark and not torch.backends.cudnn.allow_tf32
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("fails", [lambda device: False, lambda device: torch.empty(0).view(3)])
def test_a_gpu_that_computes_wrongly_or_fails_is_not_used(one_gpu: pytest.MonkeyPatch, fails: object) -> None:
    one_gpu.setattr(module, "agrees_with_cpu", fails)
    assert opened().device.type == "cpu"
    assert why_no_gpu()
    assert refused(device="cuda").code == "E_COMPUTE_DEVICE"


def test_matrix_product_is_compared_with_the_cpu() -> None:
    assert agrees_with_cpu(torch.device("cpu"))
    with fake_gpu():
        assert not agrees_with_cpu(GPU.device), "it returns zeros"


def test_threads_are_those_of_the_settings() -> None:
    before = torch.get_num_threads()
    try:
        Compute.open(ComputeSettings(device="cpu"), threads=2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


# --- precision --------------------------------------------------------------------------------------------


def test_auto_precision_is_float32() -> None:
    assert PROCESSOR.dtype is None and Compute(torch.device("cuda")).dtype is None
    with PROCESSOR.autocast():
        assert not torch.is_autocast_enabled("cpu")
    assert Compute(precision="fp16").exact().dtype is None


def test_bf16_is_refused_on_a_cpu_even_if_a_check_finds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor with AMX passed the check, and trained a 2.5D network to values that were not finite."""
    monkeypatch.setattr(module, "gradients_repeat", lambda device, dtype: True)
    assert refused(device="cpu", precision="bf16").code == "E_COMPUTE_PRECISION"
    assert opened(device="cpu", precision="fp16").dtype is torch.float16


@pytest.mark.parametrize("wanted", ["bf16", "fp16"])
def test_precision_with_wrong_gradients_is_refused(monkeypatch: pytest.MonkeyPatch, wanted: str) -> None:
    monkeypatch.setattr(module, "gradients_repeat", lambda device, dtype: False)
    refusal = refused(device="cpu", precision=wanted)
    assert refusal.code == "E_COMPUTE_PRECISION" and wanted in refusal.says


def test_bf16_is_refused_where_a_gpu_only_imitates_it(one_gpu: pytest.MonkeyPatch) -> None:
    one_gpu.setattr(module, "gradients_repeat", lambda device, dtype: True)
    one_gpu.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert refused(device="cuda", precision="bf16").code == "E_COMPUTE_PRECISION"
    assert opened(device="cuda", precision="fp16").dtype is torch.float16


def test_gradients_are_compared_on_the_device_itself() -> None:
    assert precision.gradients_repeat(torch.device("cpu"), None)
    with fake_gpu() as gpu:
        precision.gradients_repeat(GPU.device, None)
    assert gpu.computed


def test_only_fp16_scales_the_loss() -> None:
    for name, is_scaled in (("auto", False), ("fp32", False), ("bf16", False), ("fp16", True)):
        assert Compute(precision=name).scaler().is_enabled() is is_scaled  # type: ignore[arg-type]


# --- batches in parts -------------------------------------------------------------------------------------


def test_batch_norm_is_never_computed_over_parts_of_a_batch() -> None:
    parted = Compute(micro_batch=2)
    with pytest.raises(Refusal) as caught:
        parted.parts(network(), 8)
    assert caught.value.code == "E_COMPUTE_MICRO_BATCH"
    assert parted.parts(network("group"), 8) == 2
    assert parted.parts(network(), 2) == PROCESSOR.parts(network(), 8) == 0
    assert parted.at_most(16) == 2 and parted.at_most(1) == 1 and PROCESSOR.at_most(16) == 16


# --- use --------------------------------------------------------------------------------------------------


def test_network_returns_to_the_cpu_after_errors_too() -> None:
    moved = network()
    with fake_gpu(), pytest.raises(ZeroDivisionError), GPU.use(moved):
        assert {weight.device.type for weight in moved.parameters()} == {"meta"}
        raise ZeroDivisionError
    assert {tensor.device.type for tensor in moved.state_dict().values()} == {"cpu"}


def test_network_can_be_trained_after_inference() -> None:
    moved = network()
    with fake_gpu(), torch.inference_mode(), GPU.use(moved):
        pass
    assert not any(weight.is_inference() for weight in moved.parameters())


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."), "E_COMPUTE_MEMORY"),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), "E_COMPUTE_FAILED"),
        (RuntimeError("CUDA error: device-side assert triggered"), "E_COMPUTE_FAILED"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), "E_COMPUTE_FAILED"),
    ],
)
def test_errors_of_the_device_are_refusals(error: Exception, code: str) -> None:
    with pytest.raises(Refusal) as caught, PROCESSOR.use(network()):
        raise error
    assert caught.value.code == code
    assert "GiB" not in caught.value.says and str(error) in caught.value.private


def test_too_little_memory_of_the_machine_is_a_refusal() -> None:
    with pytest.raises(Refusal, match="E_COMPUTE_MEMORY"), PROCESSOR.use(network()):
        torch.empty(10**15)


def test_other_errors_stay_errors() -> None:
    with pytest.raises(RuntimeError, match="shape"), PROCESSOR.use(network()):
        torch.zeros(2).view(3)
