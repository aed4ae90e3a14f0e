"""The release of a clone, without the bundles, which need the package registry."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from federation.delivery.checksums import verify_release
from federation.delivery.make_release import add_package, make_release
from models.refusal import Refusal
from models.signature import fingerprint
from tests.federation.delivery.conftest import PYTHON, MakeBundle
from tests.federation.delivery.test_audit import database, entry, introduced

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


def test_release_with_a_vulnerability_that_nobody_answered_is_refused(tmp_path: Path, private_key: Path) -> None:
    known = entry(events=introduced("0"), summary="bad")
    known["affected"][0]["package"]["name"] = "pydicom"
    source, database_file = clone(tmp_path / "a"), database(tmp_path, known)
    with pytest.raises(Refusal, match="E_BUILD_FAILED") as caught:
        make_release(source, tmp_path / "out", roles=[], pythons=["3.11"], key=private_key, databases=[database_file])
    assert "NEEDS AN ANSWER: bad" in str(caught.value.private)
    assert not [path for path in (tmp_path / "out").iterdir() if path.suffix != ".pub"]


def test_packages_need_one_python(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="E_BUNDLE_UNFIT"):
        make_release(ROOT, tmp_path, roles=[], pythons=["3.11", "3.13"], key=None, with_packages=True)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
@pytest.mark.skipif(not Path(f"/usr/bin/python{PYTHON}").exists(), reason="needs this Python from the distribution")
def test_debian_package_of_a_release_has_a_bill_of_materials(tmp_path: Path, make_bundle: MakeBundle) -> None:
    (tmp_path / "made").mkdir()
    package = add_package(make_bundle(role="clinic"), tmp_path / "made", ROOT, epoch=1_700_000_000)
    assert package.name == "fedthorax-clinic_0.1.0_amd64.deb"
    content = json.loads((package.parent / f"{package.stem}.cdx.json").read_text())
    assert content["metadata"]["component"]["name"] == package.stem
    assert {"little", "fedthorax"} <= {each["name"] for each in content["components"]}
