"""Tests of the end of every command."""

import signal
import subprocess
import sys
from subprocess import PIPE

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
