"""`.ci/hygiene` rejects files that must not be committed."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / ".ci" / "hygiene"


def judged(*files: Path) -> tuple[int, str]:
    done = subprocess.run([sys.executable, SCRIPT, *files], capture_output=True, text=True, check=False)
    assert not done.stderr
    return done.returncode, done.stdout


def test_valid_files_pass(tmp_path: Path) -> None:
    files = {
        "a.md": b"A title\n=====\n\nText\n",
        "b.toml": b"a = 1\n",
        "c.yml": b"a: 1\n",
        "d.png": b"\x89PNG\r\n \n\n",
    }
    for name, content in {**files, "py.typed": b""}.items():
        (tmp_path / name).write_bytes(content)
    assert judged(*tmp_path.iterdir()) == (0, "")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.py", b"a = 1\r\n", "a carriage return"),
        ("a.py", b"a = 1 \nb = 2\n", "blanks at the end of a line"),
        ("a.py", b"a = 1", "does not end in one line end"),
        ("a.py", b"a = 1\n\n", "does not end in one line end"),
        ("a.py", b"<" * 7 + b" ours\n", "a mark of a merge conflict"),
        ("a.pem", b"-----BEGIN " + b"EC PRIVATE KEY-----\n", "a private key"),
        ("a.toml", b"a =\n", "is not TOML"),
        ("a.json", b"{\n", "is not JSON"),
        ("a.yml", b"a: [1\n", "is not YAML"),
        ("a.npy", b"\xff" * 1_000_001, "larger than 1 MB"),
        ("a.safetensors", b"\xff" * 5_000_001, "larger than 5 MB"),
    ],
)
def test_fault_is_reported_with_its_file(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    code, text = judged(path)
    assert code == 1
    assert text.startswith(f"{path}: {says}")
