"""Files of tensors: written whole or not at all, and a missing or damaged one is refused with a code."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from models.refusal import Refusal
from pipeline.cohort.tensor_files import is_whole, load_tensor, save_scan, save_tensor

TENSOR = np.arange(24, dtype=np.float16).reshape(2, 3, 4)
DAMAGES = {
    "missing": lambda whole: None,
    "empty": lambda whole: b"",
    "half": lambda whole: whole[: len(whole) // 2],
    "one byte less": lambda whole: whole[:-1],
    "one byte more": lambda whole: whole + b"\0",
    "twice": lambda whole: whole + whole,
    "text": lambda whole: b"no tensor at all " * 99,
    "a pickle": lambda whole: pickle.dumps({"scan": 1}),
    "no magic": lambda whole: b"\0" * 6 + whole[6:],
    "header cut": lambda whole: whole[:20],
    "header's length": lambda whole: whole[:8] + b"\xff\xff" + whole[10:],
    "header's shape, larger": lambda whole: whole.replace(b"(2, 3, 4)", b"(9, 3, 4)"),
    "header's shape, smaller": lambda whole: whole.replace(b"(2, 3, 4)", b"(1, 3, 4)"),
    "header's type": lambda whole: whole.replace(b"'<f2'", b"'|O2'"),
    "header's quote": lambda whole: whole.replace(b"'descr'", b"'descr("),
    "an archive's magic": lambda whole: b"PK\x03\x04" + whole[4:],
    "zeros": lambda whole: b"\0" * len(whole),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_tensor_is_refused_without_its_path(tmp_path: Path, damage: str) -> None:
    save_tensor(tmp_path, "one.npy", TENSOR)
    path = tmp_path / "one.npy"
    content = DAMAGES[damage](path.read_bytes())
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    assert not is_whole(path)
    with pytest.raises(Refusal, match="E_COHORT_FILE") as caught:
        load_tensor(path)
    assert str(tmp_path) not in str(caught.value)


def test_any_changed_bit_of_the_header_is_refused_or_harmless(tmp_path: Path) -> None:
    save_tensor(tmp_path, "one.npy", TENSOR)
    path = tmp_path / "one.npy"
    whole = path.read_bytes()
    for bit in range(8 * (len(whole) - TENSOR.nbytes)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            load_tensor(path)
        except Refusal:
            assert not is_whole(path), f"bit {bit}: the next ingest would not make the file again"


def test_whole_tensor_is_read_unchanged(tmp_path: Path) -> None:
    save_tensor(tmp_path, "one.npy", TENSOR)
    assert is_whole(tmp_path / "one.npy")
    np.testing.assert_array_equal(load_tensor(tmp_path / "one.npy"), TENSOR)


def test_interrupted_tensor_write_leaves_no_partial_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tensor(tmp_path, "old.npy", np.ones(3, np.float16))
    whole = np.save

    def half(file: object, tensor: object) -> None:
        file.write(b"\x93NUMPY")  # type: ignore[attr-defined]
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "save", half)
    for name in ("old.npy", "new.npy"):
        with pytest.raises(KeyboardInterrupt):
            save_tensor(tmp_path, name, np.zeros(3, np.float16))
    assert np.load(tmp_path / "old.npy").tolist() == [1, 1, 1]
    assert not (tmp_path / "new.npy").exists()
    assert list(tmp_path.glob("*.npy")) == [tmp_path / "old.npy"]
    monkeypatch.setattr(np, "save", whole)
    save_tensor(tmp_path, "new.npy", np.zeros(3, np.float16))
    assert np.load(tmp_path / "new.npy").tolist() == [0, 0, 0]


def test_kill_while_a_scan_is_written_again_leaves_no_features_of_another_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors, features = tmp_path / "tensors", tmp_path / "encoded" / "encoder" / "one.npy"
    tensors.mkdir()
    features.parent.mkdir(parents=True)
    save_scan(tensors, "one.npy", TENSOR)
    features.write_bytes(b"features")

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("pipeline.cohort.tensor_files.save_tensor", killed)
        with pytest.raises(KeyboardInterrupt):
            save_scan(tensors, "one.npy", TENSOR * 2)
    np.testing.assert_array_equal(load_tensor(tensors / "one.npy"), TENSOR)
    assert not features.exists()
    save_scan(tensors, "one.npy", TENSOR * 2)
    np.testing.assert_array_equal(load_tensor(tensors / "one.npy"), TENSOR * 2)
