"""The bill of materials of each form of a release, as CycloneDX 1.6 in JSON.

It lists each library with its version, licence, SHA-256 and what it needs; the JavaScript of the viewer; and the
weights of the lung segmenter. The same release gives the same bytes: the serial number is derived from the content, and
the date is that of the release.

https://cyclonedx.org/docs/1.6/json/
"""

import base64
import json
import uuid
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from federation.delivery.debian_root import DebianPackage
from federation.delivery.distributions import VIEWER
from federation.delivery.licences import licence_of
from federation.delivery.wheelhouse import metadata_of, sha256_of

if TYPE_CHECKING:
    from cyclonedx.model.component import Component

_SEGMENTER = Path("models/lung_segmenter.safetensors")
_NAMESPACE = uuid.UUID("6ba7b811-9dad-11d1-80b4-00c04fd430c8")  # RFC 9562: names that are addresses
_OWN = "Apache-2.0"


def write_inventory(
    out: Path,
    name: str,
    version: str,
    source: Path,
    wheels: Sequence[Path],
    *,
    epoch: int,
    packages: Sequence[DebianPackage] = (),
) -> None:
    """Write the bill of materials of one form of the release.

    Parameters
    ----------
    out : Path
        The file to write.
    name : str
        The form: the file name of the wheel, or the name of the bundle.
    version : str
        The version of fedthorax.
    source : Path
        The source, for the viewer's lock file and the segmenter.
    wheels : sequence of Path
        The wheels of the form; none for the wheel and the sdist themselves.
    epoch : int
        The date of the release in Unix seconds.
    packages : sequence of DebianPackage
        The packages of Debian in an image. Their licences are in the image, and not repeated here.
    """
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import ComponentType
    from cyclonedx.output.json import JsonV1Dot6

    bom = Bom()
    bom.metadata.timestamp = datetime.fromtimestamp(epoch, UTC)
    root = _component(name, version, _OWN, kind=ComponentType.APPLICATION)
    bom.metadata.component = root
    inside = [_segmenter(source), *_viewer(source), *map(_of_debian, packages)]
    libraries = _libraries(wheels)
    for component in (*inside, *libraries.values()):
        bom.components.add(component)
    bom.register_dependency(root, [*inside, *libraries.values()])
    for wheel in wheels:
        needs = [Requirement(text) for text in metadata_of(wheel).get_all("Requires-Dist", ())]
        needed = {canonicalize_name(each.name) for each in needs} & libraries.keys()
        bom.register_dependency(libraries[_key(wheel)], [libraries[each] for each in sorted(needed)])
    bom.serial_number = uuid.uuid5(_NAMESPACE, _content(JsonV1Dot6(bom).output_as_string()))
    out.write_text(JsonV1Dot6(bom).output_as_string(indent=1) + "\n", encoding="utf-8")


def _content(written: str) -> str:
    """Return what the serial number is derived from: all but the number itself."""
    content: dict[str, Any] = json.loads(written)
    content.pop("serialNumber")
    return json.dumps(content, sort_keys=True)


def _libraries(wheels: Iterable[Path]) -> "dict[str, Component]":
    """Return the libraries by name. A library can have a wheel for each Python version."""
    from cyclonedx.model import HashAlgorithm, HashType

    found: dict[str, Component] = {}
    for wheel in wheels:
        metadata, key = metadata_of(wheel), _key(wheel)
        version = str(metadata["Version"])
        if key not in found:
            found[key] = _component(key, version, licence_of(metadata), purl=("pypi", "", key, version))
        found[key].hashes.add(HashType(alg=HashAlgorithm.SHA_256, content=sha256_of(wheel)))
    return found


def _viewer(source: Path) -> "list[Component]":
    """Return the JavaScript packages in the viewer's file, if the release has it."""
    from cyclonedx.model import HashAlgorithm, HashType

    if not (source / VIEWER / "niivue.js").exists():
        return []
    packages = json.loads((source / "viewer" / "package-lock.json").read_text(encoding="utf-8"))["packages"]
    found = []
    for place, package in sorted(packages.items()):
        if not place or package.get("dev") or package.get("optional"):
            continue  # the project itself, and what only builds or tests use
        name = place.rpartition("node_modules/")[2]
        scope, _, short = name.rpartition("/")
        component = _component(
            name, package["version"], package["license"], purl=("npm", scope, short, package["version"])
        )
        algorithm, _, digest = package["integrity"].partition("-")
        assert algorithm == "sha512"
        component.hashes.add(HashType(alg=HashAlgorithm.SHA_512, content=base64.b64decode(digest).hex()))
        found.append(component)
    return found


def _of_debian(package: DebianPackage) -> "Component":
    from cyclonedx.model import HashAlgorithm, HashType

    purl = ("deb", "debian", package.name, package.version)
    component = _component(package.name, package.version, purl=purl, qualifiers=package.qualifiers)
    component.hashes.add(HashType(alg=HashAlgorithm.SHA_256, content=package.sha256))
    return component


def _segmenter(source: Path) -> "Component":
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.component import ComponentType

    digest = sha256_of(source / _SEGMENTER)
    component = _component("lung segmenter", digest[:12], _OWN, kind=ComponentType.MACHINE_LEARNING_MODEL)
    component.hashes.add(HashType(alg=HashAlgorithm.SHA_256, content=digest))
    return component


def _component(
    name: str,
    version: str,
    licence: str = "",
    *,
    purl: tuple[str, str, str, str] | None = None,
    qualifiers: dict[str, str] | None = None,
    kind: Any = None,
) -> "Component":
    from cyclonedx.factory.license import LicenseFactory
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    url = PackageURL(purl[0], purl[1] or None, purl[2], purl[3], qualifiers) if purl else None
    return Component(
        type=kind or ComponentType.LIBRARY,
        name=name,
        version=version,
        purl=url,
        bom_ref=str(url) if url else f"{name} {version}",
        licenses=[LicenseFactory().make_from_string(licence)] if licence else (),
    )


def _key(wheel: Path) -> str:
    return canonicalize_name(str(metadata_of(wheel)["Name"]))
