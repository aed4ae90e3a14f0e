"""What an image is built from. The images themselves: tests/e2e/test_images.py, on request."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from federation.delivery.debian_root import DebianPackage
from federation.delivery.images import ImageParts, build_image
from federation.delivery.inventory import write_inventory
from models.refusal import Refusal

ROOT = Path(__file__).resolve().parents[3]


def parts(folder: Path, pythons: str) -> ImageParts:
    (folder / "BUNDLE").write_text(f"format=1\nrole=node\nversion=0.1.0\npythons={pythons}\nports=\n")
    return ImageParts(ROOT, folder, commit="", epoch=0)


def test_image_has_the_newest_python_of_the_bundle_that_debian_has(tmp_path: Path) -> None:
    assert parts(tmp_path, "3.11 3.12").python == "3.11"
    assert parts(tmp_path, "3.11 3.12 3.13").python == "3.13"
    with pytest.raises(Refusal, match="E_IMAGE_PYTHON"):
        _ = parts(tmp_path, "3.12").python


def test_missing_program_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(Refusal, match="E_BUILD_FAILED: looking for the program buildah"):
        build_image(parts(tmp_path, "3.11"), tmp_path)


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let buildah keep its images in a folder of the test."""
    if os.geteuid() or not all(map(shutil.which, ("buildah", "mmdebstrap"))):
        pytest.skip("needs root, buildah and mmdebstrap")
    folders = {name: tmp_path / name for name in ("runroot", "graphroot")}
    lines = [f'{name} = "{folder}"' for name, folder in folders.items()]
    (tmp_path / "storage.conf").write_text("\n".join(["[storage]", 'driver = "vfs"', *lines]))
    monkeypatch.setenv("CONTAINERS_STORAGE_CONF", str(tmp_path / "storage.conf"))


def buildah(*arguments: str) -> str:
    return subprocess.run(["buildah", *arguments], check=True, capture_output=True, text=True).stdout


def test_image_that_the_machine_has_loaded_stays(storage: None, tmp_path: Path) -> None:
    container = buildah("from", "scratch").strip()
    buildah("commit", "--quiet", container, "fedthorax-node:0.1.0")
    buildah("rm", container)
    of_node = ImageParts(ROOT, parts(tmp_path, "3.11").bundle, commit="", epoch=0, mirror="no mirror")
    with pytest.raises(Refusal, match="E_BUILD_FAILED"):
        build_image(of_node, tmp_path)
    names = [name for image in json.loads(buildah("images", "--json")) for name in image["names"]]
    assert names == ["localhost/fedthorax-node:0.1.0"]


def test_bill_of_materials_names_the_packages_of_debian(tmp_path: Path) -> None:
    pytest.importorskip("cyclonedx")
    package = DebianPackage("libc6", "2.41-12+deb13u4", "amd64", "trixie", "ab" * 32)
    write_inventory(tmp_path / "a.json", "image", "0.1.0", ROOT, [], epoch=0, packages=[package])
    content = json.loads((tmp_path / "a.json").read_text())
    (found,) = [component for component in content["components"] if component["name"] == "libc6"]
    assert found["purl"] == "pkg:deb/debian/libc6@2.41-12%2Bdeb13u4?arch=amd64&distro=trixie"
    assert found["hashes"] == [{"alg": "SHA-256", "content": "ab" * 32}]
    root = next(each for each in content["dependencies"] if each["ref"] == "image 0.1.0")
    assert found["bom-ref"] in root["dependsOn"]
