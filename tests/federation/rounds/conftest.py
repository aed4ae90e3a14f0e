"""Fixtures of the tests of a study's rounds."""

from types import SimpleNamespace

import flwr.app.message.arrayrecord as flower_arrays
import pytest


@pytest.fixture(autouse=True)
def no_garbage_is_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's Bulyan collects garbage at every array it takes: a fifth of a second each beside torch's objects."""
    monkeypatch.setattr(flower_arrays, "gc", SimpleNamespace(collect=lambda: 0))
