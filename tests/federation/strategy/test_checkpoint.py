"""Checkpoints survive kills, damaged files and full disks."""

import dataclasses
import errno
import os
import stat
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError

from federation.strategy.checkpoint import State, load_latest, save
from models.refusal import Refusal


def state(number: int) -> State:
    draw = np.random.default_rng(number)
    return State(
        round=number,
        arrays={"w": draw.normal(size=(5, 3)).astype(np.float32), "a/b.scale": np.asarray(1.5, np.float32)},
        buffers={"n.num_batches_tracked": np.asarray(2**53 + 1), "n.running_var": np.ones(3, np.float32)},
        memory={"m_t/w": draw.normal(size=(5, 3)), "v_t/w": np.zeros((5, 3), np.float16)},
        history=[{"round": r, "metrics": {"loss": 0.1 * r}, "refused": {"7": "E_X"}} for r in range(number)],
        about={"strategy": "FedAdam", "study": "é"},
    )


def assert_same(one: State, other: State):
    for field in dataclasses.fields(State):
        mine, yours = getattr(one, field.name), getattr(other, field.name)
        if field.name in ("arrays", "buffers", "memory"):
            assert set(mine) == set(yours)
            for name in mine:
                assert (mine[name].dtype, mine[name].shape) == (yours[name].dtype, yours[name].shape)
                np.testing.assert_array_equal(mine[name], yours[name])
        else:
            assert mine == yours


def rounds_kept(folder: Path) -> list[int]:
    return sorted(int(path.name[6:12]) for path in folder.iterdir())


def test_saved_state_is_loaded_unchanged(tmp_path):
    save(tmp_path / "new" / "folder", state(1))
    loaded = load_latest(tmp_path / "new" / "folder")
    assert_same(loaded.state, state(1))
    assert loaded.damaged_rounds == ()


def test_empty_groups_are_loaded_as_empty(tmp_path):
    bare = State(round=0, arrays={}, buffers={}, memory={}, history=[], about={})
    save(tmp_path, bare)
    assert_same(load_latest(tmp_path).state, bare)


@pytest.mark.parametrize("order", ["F", "reversed", "strided"])
def test_arrays_of_any_memory_layout_are_loaded_unchanged(tmp_path, order):
    whole = np.arange(60, dtype=np.float32).reshape(10, 6)
    array = {"F": np.asfortranarray(whole), "reversed": whole[::-1], "strided": whole[::3, ::2]}[order]
    save(tmp_path, dataclasses.replace(state(1), arrays={"w": array}))
    np.testing.assert_array_equal(load_latest(tmp_path).state.arrays["w"], array)


def test_last_three_checkpoints_are_kept(tmp_path):
    for number in (1, 2, 9, 10, 11):
        save(tmp_path, state(number))
    assert rounds_kept(tmp_path) == [9, 10, 11]
    assert_same(load_latest(tmp_path).state, state(11))


def test_other_files_in_the_folder_are_left_alone(tmp_path):
    (tmp_path / "round-notes.txt").write_text("mine")
    for number in range(5):
        save(tmp_path, state(number))
    assert (tmp_path / "round-notes.txt").read_text() == "mine"


def test_saving_a_round_again_keeps_one_file(tmp_path):
    assert save(tmp_path, state(1)) == save(tmp_path, state(1))
    assert rounds_kept(tmp_path) == [1]


def test_checkpoint_is_readable_by_its_owner_only(tmp_path):
    assert stat.S_IMODE(save(tmp_path, state(1)).stat().st_mode) == 0o600


def test_missing_checkpoint_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(Refusal) as refused:
            load_latest(folder)
        assert refused.value.code == "E_CHECKPOINT_NONE"


# --- damage ------------------------------------------------------------------------------------------------


def test_flipped_bit_is_detected_and_the_previous_checkpoint_is_used(tmp_path, caplog):
    save(tmp_path, state(1))
    latest = save(tmp_path, state(2))
    intact = latest.read_bytes()
    draw = np.random.default_rng(0)
    for _ in range(100):
        damaged = bytearray(intact)
        damaged[draw.integers(len(intact))] ^= 1 << draw.integers(8)
        latest.write_bytes(damaged)
        caplog.clear()
        loaded = load_latest(tmp_path)
        assert_same(loaded.state, state(1))
        assert loaded.damaged_rounds == (2,)
        assert "round 2 is damaged" in caplog.text
    latest.write_bytes(intact)
    assert load_latest(tmp_path).damaged_rounds == ()


@pytest.mark.parametrize("length", [0, 7, 8, 100, -1])
def test_truncated_file_is_detected(tmp_path, length):
    save(tmp_path, state(1))
    latest = save(tmp_path, state(2))
    latest.write_bytes(latest.read_bytes()[:length])
    assert load_latest(tmp_path).damaged_rounds == (2,)


def test_only_damaged_checkpoints_are_refused(tmp_path):
    for number in (1, 2):
        save(tmp_path, state(number)).write_bytes(b"")
    with pytest.raises(Refusal) as refused:
        load_latest(tmp_path)
    assert refused.value.code == "E_CHECKPOINT_DAMAGED"
    assert refused.value.numbers == {"count": 2}


def test_saving_after_damage_replaces_the_damaged_rounds(tmp_path):
    for number in (1, 2, 3):
        save(tmp_path, state(number))
    for path in tmp_path.glob("round-00000[23]-*"):
        path.write_bytes(b"damaged")
    assert load_latest(tmp_path).damaged_rounds == (3, 2)
    save(tmp_path, state(2))
    assert rounds_kept(tmp_path) == [1, 2]
    assert_same(load_latest(tmp_path).state, state(2))


# --- kills -------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Simulates kill -9: no exception handler of this project runs after it."""


class Steps:
    """Counts the disk steps of a save, and simulates a kill before or after the chosen step."""

    def __init__(self, monkeypatch, kill_at: int | None = None, *, after: bool = False):
        self.count = 0
        self.kill_at = kill_at
        self.after = after
        for name in ("fsync", "replace", "unlink"):
            monkeypatch.setattr(os, name, self.watched(getattr(os, name)))

    def watched(self, real):
        def step(*args, **kwargs):
            number, self.count = self.count, self.count + 1
            if number == self.kill_at and not self.after:
                raise Killed
            done = real(*args, **kwargs)
            if number == self.kill_at:
                raise Killed
            return done

        return step


# fsync, rename, fsync of the folder, removal of the oldest checkpoint.
STEPS = 4


def three_saved(folder: Path):
    for number in (1, 2, 3):
        save(folder, state(number))


def test_save_has_the_expected_number_of_disk_steps(tmp_path, monkeypatch):
    three_saved(tmp_path)
    with monkeypatch.context() as patch:
        steps = Steps(patch)
        save(tmp_path, state(4))
    assert steps.count == STEPS


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("kill_at", range(STEPS))
def test_latest_checkpoint_is_intact_after_a_kill_at_any_step(tmp_path, monkeypatch, kill_at, after):
    three_saved(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        Steps(patch, kill_at, after=after)
        save(tmp_path, state(4))
    renamed = (kill_at, after) >= (1, True)
    loaded = load_latest(tmp_path)
    assert_same(loaded.state, state(4 if renamed else 3))
    assert loaded.damaged_rounds == ()

    save(tmp_path, state(5))
    assert_same(load_latest(tmp_path).state, state(5))
    assert rounds_kept(tmp_path) == ([3, 4, 5] if renamed else [2, 3, 5])  # no partial file is left


WRITTEN = 100  # number of positions within one file at which writing is killed


@pytest.mark.parametrize("hundredth", range(WRITTEN))
def test_previous_checkpoint_is_intact_after_a_kill_while_writing(tmp_path, monkeypatch, hundredth):
    three_saved(tmp_path)
    size = save(tmp_path / "elsewhere", state(4)).stat().st_size
    real = os.fdopen

    class Torn:
        """A file of which only the first part is written to disk."""

        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, data):
            assert len(data) == size
            self.file.write(data[: size * hundredth // WRITTEN])
            self.file.flush()
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(os, "fdopen", lambda *args: Torn(real(*args)))
        save(tmp_path, state(4))
    (torn,) = tmp_path.glob("*.tmp")
    assert torn.stat().st_size == size * hundredth // WRITTEN
    loaded = load_latest(tmp_path)
    assert_same(loaded.state, state(3))
    assert loaded.damaged_rounds == ()
    save(tmp_path, state(4))
    assert_same(load_latest(tmp_path).state, state(4))
    assert not list(tmp_path.glob("*.tmp"))


def test_intact_file_is_used_after_a_kill_while_replacing_a_damaged_round(tmp_path, monkeypatch):
    """Between rename and clean-up, a damaged and an intact file of the same round exist."""
    three_saved(tmp_path)
    for path in tmp_path.glob("round-000003-*"):
        path.write_bytes(b"damaged")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        Steps(patch, 1, after=True)
        save(tmp_path, dataclasses.replace(state(3), about={"second": "attempt"}))
    assert load_latest(tmp_path).state.about == {"second": "attempt"}


# --- full disks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_full_disk_is_refused_and_leaves_no_partial_file(tmp_path, monkeypatch, step):
    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    three_saved(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with monkeypatch.context() as patch, pytest.raises(Refusal) as refused:
        patch.setattr(os, step, full)
        save(tmp_path, state(4))
    assert refused.value.code == "E_CHECKPOINT_WRITE"
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    save(tmp_path, state(4))  # after space is available again
    assert_same(load_latest(tmp_path).state, state(4))


def test_file_in_place_of_the_checkpoint_folder_is_refused(tmp_path):
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(Refusal) as refused:
        save(tmp_path / "checkpoints", state(1))
    assert refused.value.code == "E_CHECKPOINT_WRITE"


def test_checkpoint_uses_safetensors_and_never_pickle(tmp_path):
    path = save(tmp_path, state(1))
    assert int.from_bytes(path.read_bytes()[:8], "little") < path.stat().st_size  # a safetensors header
    with pytest.raises(SafetensorError):
        save(tmp_path, dataclasses.replace(state(2), arrays={"w": np.asarray([object()])}))
    assert_same(load_latest(tmp_path).state, state(1))
