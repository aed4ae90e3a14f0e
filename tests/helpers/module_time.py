"""Give one module a time of its own; threads of other tests go on with the real one."""

import time
from collections.abc import Callable
from types import ModuleType, SimpleNamespace

import pytest


def set_time(monkeypatch: pytest.MonkeyPatch, module: ModuleType, **functions: Callable[..., object]) -> None:
    """Replace functions of `time`, by name, for the code of `module` alone.

    A thread that an earlier test has left sleeps meanwhile, so a fake `time.sleep` for all would count its sleeps too.
    """
    monkeypatch.setattr(module, "time", SimpleNamespace(**{**vars(time), **functions}))
