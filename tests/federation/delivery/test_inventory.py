"""The bill of materials: complete, valid, and the same bytes each time."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from federation.delivery.distributions import VIEWER
from federation.delivery.inventory import write_inventory
from tests.federation.delivery.conftest import write_wheel

pytest.importorskip("cyclonedx")
ROOT = Path(__file__).resolve().parents[3]
EPOCH = 1_800_000_000


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A source with the real lock file of the viewer, a viewer and a segmenter of a few bytes."""
    folder = tmp_path / "source"
    for name in ("viewer/package-lock.json", "models/lung_segmenter.safetensors", VIEWER / "niivue.js"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("few bytes")
    shutil.copyfile(ROOT / "viewer" / "package-lock.json", folder / "viewer" / "package-lock.json")
    return folder


@pytest.fixture
def wheels(tmp_path: Path) -> list[Path]:
    needs = "License-Expression: MIT\nRequires-Dist: Lib.Two>=1\nRequires-Dist: absent; extra == 'more'\n"
    return [
        write_wheel(tmp_path, "one", "1.0", {}, needs),
        write_wheel(tmp_path, "lib_two", "2.0", {}, "License: Apache 2.0\n"),
    ]


def inventory(out: Path, source: Path, wheels: list[Path]) -> dict[str, Any]:
    write_inventory(out, "fedthorax-0.1.0-node", "0.1.0", source, wheels, epoch=EPOCH)
    content: dict[str, Any] = json.loads(out.read_text())
    return content


def test_it_lists_libraries_viewer_and_weights(tmp_path: Path, source: Path, wheels: list[Path]) -> None:
    content = inventory(tmp_path / "sbom.json", source, wheels)
    assert content["metadata"]["component"]["name"] == "fedthorax-0.1.0-node"
    assert content["metadata"]["timestamp"].startswith("2027-01-15T08:00:00")
    components = {each.get("purl", each["name"]): each for each in content["components"]}
    two = components["pkg:pypi/lib-two@2.0"]
    assert two["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    assert [len(each["content"]) for each in two["hashes"]] == [64]
    niivue = components["pkg:npm/%40niivue/niivue@0.69.0"]
    assert niivue["licenses"] == [{"license": {"id": "BSD-2-Clause"}}]
    assert [len(each["content"]) for each in niivue["hashes"]] == [128]
    assert "pkg:npm/axe-core@4.14.1" not in components  # only the tests use it
    assert components["lung segmenter"]["type"] == "machine-learning-model"
    needs = {each["ref"]: each.get("dependsOn", []) for each in content["dependencies"]}
    assert needs["pkg:pypi/one@1.0"] == ["pkg:pypi/lib-two@2.0"]


def test_it_is_valid_by_the_schema(tmp_path: Path, source: Path, wheels: list[Path]) -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    pytest.importorskip("jsonschema")
    inventory(tmp_path / "sbom.json", source, wheels)
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    written = (tmp_path / "sbom.json").read_text()
    assert validator.validate_str(written) is None
    assert validator.validate_str(written.replace('"bomFormat": "CycloneDX"', '"bomFormat": "other"')) is not None


def test_the_same_release_has_the_same_bytes(tmp_path: Path, source: Path, wheels: list[Path]) -> None:
    inventory(tmp_path / "one.json", source, wheels)
    inventory(tmp_path / "two.json", source, wheels[::-1])
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    other = inventory(tmp_path / "three.json", source, wheels[:1])
    assert other["serialNumber"] != json.loads((tmp_path / "one.json").read_text())["serialNumber"]


def test_without_the_viewer_it_is_not_listed(tmp_path: Path, source: Path) -> None:
    (source / VIEWER / "niivue.js").unlink()
    components = inventory(tmp_path / "sbom.json", source, [])["components"]
    assert [each["name"] for each in components] == ["lung segmenter"]
