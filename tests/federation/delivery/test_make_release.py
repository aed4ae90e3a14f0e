"""The release of a clone, without the bundles, which need the package registry."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from federation.delivery.checksums import verify_release
from federation.delivery.make_release import make_release
from models.refusal import Refusal
from models.signature import fingerprint

pytest.importorskip("cyclonedx")
ROOT = Path(__file__).resolve().parents[3]


def clone(folder: Path) -> Path:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("the source is not in git")
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", ROOT, folder], check=True, capture_output=True)
    return folder


@pytest.mark.slow
def test_two_clones_give_the_same_signed_release(tmp_path: Path, private_key: Path) -> None:
    first = make_release(clone(tmp_path / "a"), tmp_path / "one", roles=[], pythons=["3.11"], key=private_key)
    other = clone(tmp_path / "a longer name" / "b")
    second = make_release(other, tmp_path / "two", roles=[], pythons=["3.11"], key=private_key)
    files = {path.name: path.read_bytes() for path in first.iterdir()}
    assert {path.name: path.read_bytes() for path in second.iterdir()} == files
    assert len(files) == 6  # wheel, sdist, bill of materials, release.json, sums and signature
    public = tmp_path / "one" / f"{first.name}.pub"
    assert verify_release(first, [public]) == fingerprint(private_key.with_suffix(".pub"))
    described = json.loads(files["release.json"])
    head = subprocess.run(["git", "-C", other, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert described["commit"] == head.stdout.strip()
    with pytest.raises(Refusal, match="E_RELEASE_THERE"):
        make_release(other, tmp_path / "two", roles=[], pythons=["3.11"], key=private_key)
    (other / "README.md").write_text("changed")
    with pytest.raises(Refusal, match="E_TREE_CHANGED"):
        make_release(other, tmp_path / "three", roles=[], pythons=["3.11"], key=private_key)
