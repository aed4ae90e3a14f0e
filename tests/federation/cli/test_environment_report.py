"""`fedthorax --version`, and the environment report for bug reports."""

import getpass
import re
import socket
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

from federation.cli import environment_report as report
from federation.cli.main import app
from models.processor_report import ProcessorReport
from tests.federation.test_imports import imported


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    return done.exit_code, done.output


def test_version_is_one_line():
    assert run("--version") == (0, f"fedthorax {version('fedthorax')}\n")


def test_verbose_version_lists_system_libraries_codecs_and_tools():
    code, text = run("--version", "--verbose")
    assert code == 0
    for name in ("fedthorax", "Python", "OS", "processor", "memory"):
        assert re.search(rf"^{name}: .", text, re.MULTILINE), name
    for library in ("torch", "monai", "flwr", "pydicom", "numpy"):
        assert f"{library} {version(library)}" in text
    for name in (*report.LIBRARIES, *report.CODECS, *report.TOOLS):
        assert re.search(rf"(: |, ){re.escape(name)}\b", text), name


def test_report_contains_no_path_host_or_user_name(monkeypatch):
    monkeypatch.setattr("platform.release", lambda: "6.1.0-anna-ward7")
    monkeypatch.setenv("HOME", "/home/anna-ward7")
    text = report.environment_report().replace("GNU/Linux", "")
    assert "/" not in text
    assert "ward7" not in text
    words = set(re.findall(r"[\w.-]+", text))
    assert not {socket.gethostname(), getpass.getuser(), str(Path.home()), sys.prefix} & words


def test_gpu_is_described_and_asked_whether_it_works(monkeypatch):
    monkeypatch.setattr(report, "driver_version", lambda: "535.104.05")
    monkeypatch.setattr(report, "gpu_names", lambda: ["NVIDIA L4", "NVIDIA L4"])
    monkeypatch.setattr(report, "may_have_gpu", lambda _: True)
    gpu = {"device": "cuda:0", "name": "NVIDIA L4", "precision": "fp32", "free_gb": 20, "total_gb": 24, "driver": "535"}
    for found, says in (
        (gpu, "networks are computed on the GPU NVIDIA L4, in fp32 (20.0 of 24.0 GB free, driver 535)"),
        ({**gpu, "free_gb": None, "repeats": False}, "in fp32; a training step does not repeat to the bit"),
        ({"device": "cpu", "problem": "at /opt/ward7"}, "on the CPU; a GPU is there and cannot be used"),
        ({"refused": "E_COMPUTE_DEVICE", "problem": "at /opt/ward7"}, "E_COMPUTE_DEVICE: "),
    ):
        monkeypatch.setattr(
            "models.processor_report.report", lambda _, found=found: ProcessorReport.model_validate(found)
        )
        text = report.environment_report()
        assert "NVIDIA driver: 535.104.05\nGPUs: NVIDIA L4, NVIDIA L4\nnetworks: " in text
        assert says in text and "ward7" not in text


def test_missing_packages_and_tools_are_listed(monkeypatch):
    monkeypatch.setattr(report, "LIBRARIES", ("torch", "no-such-library"))
    monkeypatch.setattr(report, "TOOLS", {"no-such-tool": "no-such-command", "python": Path(sys.executable).name})
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    text = report.environment_report()
    assert "libraries (missing): no-such-library\n" in text
    assert "tools (found): python\n" in text
    assert "tools (not found): no-such-tool\n" in text


@pytest.mark.parametrize("arguments", [("--verbose",), ("--verbose", "demo"), ("no-such-command",)])
def test_usage_error_exits_with_code_2(arguments):
    assert run(*arguments)[0] == 2


def test_no_command_prints_the_help():
    assert "--version" in run()[1]


def test_report_does_not_import_the_libraries():
    code = "from federation.cli.environment_report import environment_report; environment_report()"
    assert imported(code, "torch", "monai", "flwr", "numpy", "pydicom", "pydantic") == []
