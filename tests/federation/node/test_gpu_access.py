"""The sandbox shows exactly the GPU of [compute]. The device files of these tests are ordinary files."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from federation.node import gpu_access, sandbox
from federation.node.gpu_access import driver_libraries, gpu_binds, list_libraries, reachable
from models import gpu_devices
from models.processor_report import ProcessorReport
from models.refusal import Refusal
from pipeline.site.folder import Site, init_site

SETTINGS = '[site]\nname = "ward"\n[laboratory]\nfile = "pcr.csv"\n[outcomes]\nfile = "outcomes.csv"\n'
COMMON = ["nvidiactl", "nvidia-uvm"]


@pytest.fixture
def dev(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with two GPUs, whose driver's libraries are in the system's folders."""
    folder = tmp_path / "dev"
    folder.mkdir()
    for name in ("nvidia0", "nvidia1", *COMMON, "nvidia-uvm-tools", "nvidia-modeset", "nvidia-caps"):
        (folder / name).touch()
    monkeypatch.setattr(gpu_devices, "FILES", folder)
    monkeypatch.setattr(gpu_access, "FILES", folder)
    monkeypatch.setattr(gpu_access, "list_libraries", lambda: "")
    return folder


@pytest.fixture
def make(tmp_path: Path) -> Callable[[str], Site]:
    return lambda device: init_site(tmp_path / "site", f'{SETTINGS}[compute]\ndevice = "{device}"\n')


def shown(command: list[str], option: str = "--dev-bind") -> list[str]:
    pairs = [(command[i + 1], command[i + 2]) for i, word in enumerate(command) if word == option]
    assert all(source == place for source, place in pairs)
    return [Path(place).name for _, place in pairs]


@pytest.mark.parametrize(
    ("device", "files"),
    [
        ("auto", [*COMMON, "nvidia0"]),
        ("cuda", [*COMMON, "nvidia0"]),
        ("cuda:1", [*COMMON, "nvidia1"]),
        ("cuda:1,0", [*COMMON, "nvidia1", "nvidia0"]),
        ("cuda:2", []),
        ("cuda:0,2", []),
        ("cpu", []),
    ],
)
def test_sandbox_shows_the_device_files_of_the_gpus_alone(
    dev: Path, make: Callable[[str], Site], device: str, files: list[str]
) -> None:
    assert shown(sandbox.confined(make(device), "true")) == files


def test_no_other_gpu_exists_inside_a_real_sandbox(dev: Path, make: Callable[[str], Site]) -> None:
    site = make("cuda:1")
    try:
        sandbox.available(site)
    except Refusal as refusal:
        pytest.skip(f"no sandbox here: {refusal.code}")
    listed = subprocess.run(sandbox.confined(site, "ls", str(dev)), capture_output=True, text=True, check=True)
    assert set(listed.stdout.split()) == {*COMMON, "nvidia1"}


def test_nothing_is_shown_on_a_machine_without_gpu(tmp_path: Path) -> None:
    assert gpu_binds("auto", tmp_path) == gpu_binds("cuda", tmp_path) == []


def test_libraries_outside_the_system_folders_are_shown_for_reading(
    dev: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = tmp_path / "opengl-driver"
    there.mkdir()
    (there / "libcuda.so.580.65.06").touch()
    (there / "libcuda.so.1").symlink_to("libcuda.so.580.65.06")
    (there / "libnvidia-ptxjitcompiler.so.1").touch()
    (there / "libsecret.so.1").touch()
    listed = (
        "5 libs found in cache `/etc/ld.so.cache'\n"
        + "".join(f"\t{path.name} (libc6,x86-64) => {path}\n" for path in sorted(there.iterdir()))
        + "\tlibcuda.so.1 (libc6,x86-64) => /usr/lib/x86_64-linux-gnu/libcuda.so.1\n"
        + f"\tlibnvidia-ml.so.1 (libc6,x86-64) => {there}/gone/libnvidia-ml.so.1\n"
    )
    names = ["libcuda.so.1", "libcuda.so.580.65.06", "libnvidia-ptxjitcompiler.so.1"]
    assert [path.name for path in driver_libraries(listed)] == names
    monkeypatch.setattr(gpu_access, "list_libraries", lambda: listed)
    assert shown(gpu_binds("cuda", dev), "--ro-bind") == names
    assert gpu_binds("cpu", dev) == [], "no library without a GPU"


def test_linker_is_asked_and_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(list_libraries(), str)

    def missing(*_: object, **__: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(gpu_access.subprocess, "run", missing)
    assert list_libraries() == ""


@pytest.mark.parametrize(
    ("device", "others"), [("auto", ["nvidia1"]), ("cuda:1", ["nvidia0"]), ("cpu", ["nvidia0", "nvidia1"])]
)
def test_other_gpus_are_found_from_inside(
    dev: Path, make: Callable[[str], Site], device: str, others: list[str]
) -> None:
    found = [where for what, where in sandbox.reachable(make(device)) if "GPU" in what]
    assert [Path(where).name for where in found] == others


def test_a_gpu_that_cannot_be_opened_is_no_hole(dev: Path) -> None:
    (dev / "nvidia1").unlink()
    (dev / "nvidia1").symlink_to("nowhere")
    assert list(reachable("auto", dev)) == []


def test_choice_of_gpu_is_not_inherited(make: Callable[[str], Site], monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA_VISIBLE_DEVICES would count other devices than [compute] and the sandbox."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert "CUDA_VISIBLE_DEVICES" not in sandbox.environment(make("auto"))


# --- node check -------------------------------------------------------------------------------------------


def answering(monkeypatch: pytest.MonkeyPatch, **found: object) -> list[dict[str, object]]:
    """Let the process in the sandbox answer this; return what it is started with."""
    started: list[dict[str, object]] = []

    def report(settings: object, **options: object) -> ProcessorReport:
        started.append(options)
        return ProcessorReport.model_validate(found)

    monkeypatch.setattr(sandbox, "report", report)
    monkeypatch.setattr(sandbox, "available", lambda site: None)
    return started


def test_check_tries_the_gpu_inside_the_sandbox(
    dev: Path, make: Callable[[str], Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = make("cuda:1")
    started = answering(monkeypatch, device="cuda:0", name="NVIDIA L4")
    line = sandbox.gpu_line(site)
    assert line is not None and line.status == "ok"
    assert started == [{"inside": sandbox.confined(site), "environment": sandbox.environment(site)}]


@pytest.mark.parametrize("found", [{"device": "cpu", "problem": "at /opt/secret"}, {"refused": "E_COMPUTE_DEVICE"}])
def test_gpu_that_works_only_outside_the_sandbox_is_a_warning(
    dev: Path, make: Callable[[str], Site], monkeypatch: pytest.MonkeyPatch, found: dict[str, object]
) -> None:
    answering(monkeypatch, **found)
    line = sandbox.gpu_line(make("auto"))
    assert line is not None and line.status == "warn" and line.remedy
    assert "secret" not in str(line.to_json())


def test_nothing_is_tried_without_a_gpu(
    dev: Path, make: Callable[[str], Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    started = answering(monkeypatch, device="cpu")
    assert sandbox.gpu_line(make("cpu")) is None and not started
