"""Importing a library as if what it could bring along were not there, while everybody else finds that."""

import sys
from pathlib import Path

import pytest

from models import import_lean

# Tries what is optional to it, in its own thread and, as another part of a program might just then, in another.
BRINGER = """
from threading import Thread

def found():
    try:
        import brought
    except ModuleNotFoundError as error:
        return error.name
    return brought.there

here = found()
elsewhere = []
thread = Thread(target=lambda: elsewhere.append(found()))
thread.start()
thread.join()
"""


@pytest.fixture
def libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bringer.py").write_text(BRINGER)
    (tmp_path / "brought.py").write_text("there = True")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(import_lean, "OPTIONAL", frozenset({"bringer", "brought"}))
    for name in ("bringer", "brought"):
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.mark.usefixtures("libraries")
def test_a_library_does_without_what_is_optional_to_it_and_nobody_else_does() -> None:
    before = list(sys.meta_path)
    import_lean.import_lean("bringer")
    bringer = sys.modules["bringer"]
    assert bringer.here == "brought"
    assert bringer.elsewhere == [True]
    assert sys.meta_path == before
    assert bringer.found() is True


@pytest.mark.usefixtures("libraries")
def test_what_is_there_already_stays_as_it_is() -> None:
    import bringer  # type: ignore[import-not-found]

    import_lean.import_lean("bringer")
    assert bringer.here is True


@pytest.mark.usefixtures("libraries")
def test_a_library_that_fails_leaves_nothing_behind() -> None:
    before = list(sys.meta_path)
    with pytest.raises(ModuleNotFoundError):
        import_lean.import_lean("no_such_library")
    assert sys.meta_path == before
