"""Runs `fedthorax node listen` in a process that kills itself (SIGKILL) while it stores or acknowledges a message.

`python -m tests.pipeline.feeds.killed_listener SITE STEP`. The steps are calls that the listener makes to Python and
the kernel; this module replaces them in its own process only.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from federation.cli.main import main

STEPS = ("before write", "before fsync", "before rename", "before folder fsync", "before ack", "after ack")


def die(*_: Any, **__: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def after(call: Callable[..., Any]) -> Callable[..., Any]:
    def then_die(*arguments: Any, **options: Any) -> Any:
        call(*arguments, **options)
        die()

    return then_die


def arm_fsync(renamed: Path) -> Path:
    """Die at the next flush, which must be that of the folder of a renamed file."""
    folder = renamed.parent.resolve()
    fsync = os.fsync
    os.fsync = lambda handle: die() if Path(f"/proc/self/fd/{handle}").readlink() == folder else fsync(handle)
    return renamed


def arm(step: str) -> None:
    """Replace the call at which the process is to die."""
    replace, fsync = Path.replace, os.fsync
    if step == "before write":
        os.urandom = die  # the name of the temporary file
    elif step == "before fsync":
        os.fsync = lambda handle: (
            die() if Path(f"/proc/self/fd/{handle}").readlink().suffix == ".tmp" else fsync(handle)
        )
    elif step == "before rename":
        Path.replace = die  # type: ignore[method-assign,assignment]
    elif step == "before folder fsync":
        Path.replace = lambda path, target: arm_fsync(replace(path, target))  # type: ignore[method-assign]
    elif step == "before ack":
        asyncio.StreamWriter.write = die  # type: ignore[method-assign]
    elif step == "after ack":
        asyncio.StreamWriter.write = after(asyncio.StreamWriter.write)  # type: ignore[method-assign]


if __name__ == "__main__":
    _, folder, kill_at = sys.argv
    arm(kill_at)
    sys.argv = ["fedthorax", "node", "listen", folder]
    main()
