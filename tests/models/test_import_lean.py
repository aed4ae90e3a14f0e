"""`import_lean` hides the optional dependencies of a library during its import, but not from other threads."""

import sys
from pathlib import Path

import pytest

from models import import_lean

# Imports its optional dependency in its own thread, and in another thread as unrelated code might do meanwhile.
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
    optional = {name: frozenset({"brought"}) for name in ("bringer", "no_such_library")}
    monkeypatch.setattr(import_lean, "OPTIONAL", optional)
    for name in ("bringer", "brought"):
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.mark.usefixtures("libraries")
def test_lean_import_hides_optional_libraries_from_this_import_only() -> None:
    before = list(sys.meta_path)
    import_lean.import_lean("bringer")
    bringer = sys.modules["bringer"]
    assert bringer.here == "brought"
    assert bringer.elsewhere == [True]
    assert sys.meta_path == before
    assert bringer.found() is True


@pytest.mark.usefixtures("libraries")
def test_library_already_imported_is_unchanged() -> None:
    import bringer  # type: ignore[import-not-found]

    import_lean.import_lean("bringer")
    assert bringer.here is True


@pytest.mark.usefixtures("libraries")
def test_failed_import_restores_sys_meta_path() -> None:
    before = list(sys.meta_path)
    with pytest.raises(ModuleNotFoundError):
        import_lean.import_lean("no_such_library")
    assert sys.meta_path == before
