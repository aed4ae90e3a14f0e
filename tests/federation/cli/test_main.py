"""Tests of the end of every command."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import pytest

# Takes a second to end: time for another signal, as `make` and `timeout` send it.
SLOW_TO_END = """
import atexit, time
from federation.cli import main
def end():
    print("ending", flush=True)
    time.sleep(1)
def app():
    atexit.register(end)
    print("ready", flush=True)
    time.sleep(60)
main.app = app
main.main()
"""


def test_second_sigterm_does_not_disturb_the_end() -> None:
    with subprocess.Popen([sys.executable, "-c", SLOW_TO_END], stdout=PIPE, stderr=PIPE) as command:
        assert command.stdout
        for line in (b"ready\n", b"ending\n"):
            assert command.stdout.readline() == line
            command.send_signal(signal.SIGTERM)
        _, errors = command.communicate(timeout=60)
    assert (command.returncode, errors) == (128 + signal.SIGTERM, b"")


PRINTS = """
import sys
from federation.cli import main
from federation.cli.console import print_json
def app():
    print_json(["x" * int(sys.argv[1])])
    raise SystemExit(0)
main.app = app
main.main()
"""
# A long output fails while the command writes it, a short one when its buffer is flushed at the end, if it has one.
LENGTHS = pytest.mark.parametrize("length", ["10", "100000"])
BUFFERS = pytest.mark.parametrize("unbuffered", ["", "1"])


def run(stdout: int, unbuffered: str, *arguments: str) -> tuple[int, str]:
    """Run the command and return its exit status and what it shows."""
    command, settings = [sys.executable, "-c", PRINTS, *arguments], {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(command, env=settings, stdout=stdout, stderr=PIPE, text=True, check=False)
    return done.returncode, done.stderr


@LENGTHS
@BUFFERS
@pytest.mark.parametrize("options", [[], ["--json"]])
@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="the system has no /dev/full")
def test_output_that_cannot_be_written_is_named(length: str, unbuffered: str, options: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        status, shown = run(full.fileno(), unbuffered, length, *options)
    assert status == 1
    assert shown.startswith("E_OUTPUT: ") and "Traceback" not in shown


@LENGTHS
@BUFFERS
def test_reader_that_ends_first_is_no_error_to_report(length: str, unbuffered: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        assert run(writing, unbuffered, length) == (1, "")
    finally:
        os.close(writing)
