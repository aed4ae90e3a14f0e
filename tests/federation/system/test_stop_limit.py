"""Tests of the limit of a stop, each with a process that would not end without it."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from federation.system.reaper import read_parents
from federation.system.stop_limit import ending_within
from tests.helpers.waiting import eventually

START = """
import signal, sqlite3, subprocess, sys, threading, time
from federation.system.stop_limit import ending_within
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
"""

# Python runs a signal's handler only after the call of a C library, here a query without end.
IN_A_LIBRARY = """
def begin():
    threading.Timer(0.5, print, ["ready"], {"flush": True}).start()
    return 1
database = sqlite3.connect(":memory:")
database.create_function("begin", 0, begin)
with ending_within(1.0):
    database.execute("WITH RECURSIVE n(i) AS (SELECT begin() UNION ALL SELECT i FROM n) SELECT count(*) FROM n")
"""

# An exception in a destructor is printed and lost.
IN_A_DESTRUCTOR = """
class Slow:
    def __del__(self):
        print("ready", flush=True)
        time.sleep(600)  # until the signal
with ending_within(1.0):
    Slow()
    time.sleep(600)
"""

WITH_A_CHILD = """
child = "import signal, time; signal.signal(15, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)"
with ending_within(1.0):
    child = subprocess.Popen([sys.executable, "-c", child], start_new_session=True)
    try:
        child.wait()
    finally:
        child.terminate()
        child.wait()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("code", [IN_A_LIBRARY, IN_A_DESTRUCTOR, WITH_A_CHILD])
def test_process_that_does_not_end_is_killed_with_its_children(tmp_path: Path, code: str, number: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", START + textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        text=True,
    ) as process:
        assert process.stdout and process.stderr
        assert process.stdout.readline() == "ready\n"
        children = [pid for pid, parent in read_parents().items() if parent == process.pid]
        process.send_signal(number)
        assert process.wait(timeout=120) == 128 + number
        assert f"not ended 1 s after signal {number}, killed: processes" in process.stderr.read()
    assert eventually(lambda: not set(children) & set(read_parents()))


def test_limit_ends_with_its_block() -> None:
    caught, threads = [], threading.active_count()
    before = signal.signal(signal.SIGTERM, lambda *_: caught.append("SIGTERM"))
    try:
        with ending_within(3600.0):
            os.kill(os.getpid(), signal.SIGTERM)
            assert eventually(lambda: caught)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert threading.active_count() == threads
    assert signal.set_wakeup_fd(-1) == -1
