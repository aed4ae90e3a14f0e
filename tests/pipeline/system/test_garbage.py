"""`uncollected` suspends garbage collection, and exempts only what exists at its end."""

import gc
import weakref

import pytest

from pipeline.system.garbage import uncollected


class Node:
    """An object that refers to itself, so that only a collection can free it."""

    def __init__(self) -> None:
        self.own = self


def reference_to_garbage() -> weakref.ref[Node]:
    return weakref.ref(Node())


def test_collection_is_suspended_in_the_block_alone() -> None:
    assert gc.isenabled()
    with uncollected():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_collection_is_enabled_again_after_an_error() -> None:
    with pytest.raises(ValueError), uncollected():
        raise ValueError
    assert gc.isenabled()


def test_collection_that_was_disabled_before_stays_disabled() -> None:
    gc.disable()
    try:
        with uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_only_objects_of_the_block_are_exempt() -> None:
    with uncollected():
        loaded = reference_to_garbage()
    later = reference_to_garbage()
    gc.collect()
    assert loaded() is not None
    assert later() is None
