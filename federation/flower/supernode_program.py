"""Flower's SuperNode program, ended together with its process."""

import os
import sys
import traceback
from typing import NoReturn

from flwr.supernode.cli import flower_supernode

from federation.flower.log_lines import LOOP_ENDED

__all__ = ["run_supernode"]


def run_supernode() -> NoReturn:
    """Run `flower-supernode` with the options of this process, and end the process with it.

    The program's main loop ends at a response that it does not expect, but the thread that serves the study's code
    goes on. Without this function, the process would look alive and never ask for a task again. The exit code is 1
    unless Flower gives another.
    """
    code = 1
    try:
        flower_supernode()  # returns after an error of the connection, which it has logged
        sys.stdout.write(f"{LOOP_ENDED}\n")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # waits for no thread
