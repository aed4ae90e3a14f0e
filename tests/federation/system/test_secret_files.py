"""Secrets from files reach a program's environment, and nothing else does."""

import subprocess
import sys
from pathlib import Path

import pytest

from federation.system.secret_files import read_secrets

COMMAND = [sys.executable, "-P", "-m", "federation.system.secret_files"]
SHOW = ["--", sys.executable, "-I", "-c", "import os; print(os.environ.get('TRIAL_PASSWORD'))"]


def test_program_gets_the_first_line_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("open = sesame\nnot this\n")
    done = subprocess.run(
        [*COMMAND, f"TRIAL_PASSWORD={tmp_path / 'password'}", *SHOW], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "open = sesame\n", "")


def test_program_does_not_start_without_its_secret(tmp_path: Path) -> None:
    done = subprocess.run([*COMMAND, f"TRIAL_PASSWORD={tmp_path / 'none'}", *SHOW], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (1, b"")


@pytest.mark.parametrize("pair", ["TRIAL_PASSWORD", "=file", "TRIAL_PASSWORD="])
def test_other_forms_are_refused(pair: str) -> None:
    with pytest.raises(ValueError, match="not NAME=FILE"):
        read_secrets([pair])


def test_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("\n")
    with pytest.raises(ValueError, match="the file for TRIAL_PASSWORD is empty"):
        read_secrets([f"TRIAL_PASSWORD={tmp_path / 'password'}"])
