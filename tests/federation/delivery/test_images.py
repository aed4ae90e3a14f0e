"""What an image is built from. The images themselves: tests/e2e/test_images.py, on request."""

import json
import shutil
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
