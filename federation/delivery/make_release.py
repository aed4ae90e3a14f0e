"""`make release`: every form of the release, with bills of materials, checksums and a signature, below dist/.

dist/fedthorax-VERSION/
    fedthorax-VERSION-py3-none-any.whl, fedthorax-VERSION.tar.gz    wheel and sdist
    fedthorax-VERSION-ROLE-PYTHONS-linux-x86_64.tar                 the offline bundle of each role
    fedthorax-VERSION-ROLE-image-linux-x86_64.oci.tar               the container image of each role, with --images
    fedthorax-ROLE_VERSION_amd64.deb                                the Debian package of each role, with --deb
    *.cdx.json                                                      the bill of materials of each of them
    release.json                                                    commit, date and tools, to build it again
    SHA256SUMS, SHA256SUMS.sig                                      over all of them
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
import zlib
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from federation.delivery import reasons
from federation.delivery.archives import write_tar
from federation.delivery.audit import audit
from federation.delivery.bundle import WHEELS, BundleParts, sizes, write_bundle
from federation.delivery.checksums import sign_sums, verify_release, write_sums
from federation.delivery.debian_package import build_package
from federation.delivery.distributions import VIEWER, build_distributions, commit_of, source_epoch, version_of
from federation.delivery.images import ImageParts, build_image
from federation.delivery.inventory import write_inventory
from federation.delivery.licences import collect_licences
from federation.delivery.locks import PYTHONS, ROLES, lock_file
from federation.delivery.wheelhouse import fetch_wheels
from models.refusal import Refusal
from models.signature import fingerprint, public_key

_LICENCE_OF_VIEWER = VIEWER / "niivue.LICENSE.txt"


def make_release(
    source: Path,
    out: Path,
    *,
    roles: Sequence[str],
    pythons: Sequence[str],
    key: Path | None,
    with_images: bool = False,
    with_packages: bool = False,
    databases: Sequence[Path] = (),
) -> Path:
    """Make a release of the commit that `source` is at, in a new folder below `out`; return the folder.

    `key`: the private key that signs it; None makes a release without a signature, for a trial. `databases`: exports of
    OSV. With them, nothing is released that has a known vulnerability of high severity without a written answer.

    Raises Refusal: E_TREE_CHANGED, E_RELEASE_THERE, E_SIGNING_KEY, E_BUILD_FAILED, E_LICENCE, E_IMAGE_PYTHON,
    E_BUNDLE_UNFIT.
    """
    if with_packages and len(pythons) != 1:
        raise Refusal(reasons.BUNDLE_UNFIT)
    began = time.monotonic()
    commit, epoch, version = commit_of(source), source_epoch(source), version_of(source)
    folder = out / f"fedthorax-{version}"
    if folder.exists():
        raise Refusal(reasons.RELEASE_THERE, private=str(folder))
    out.mkdir(parents=True, exist_ok=True)
    public = out / f"{folder.name}.pub"
    if key:
        public.write_bytes(public_key(key))

    def say(text: str) -> None:
        sys.stderr.write(f"{time.monotonic() - began:6.0f} s  {text}\n")

    say("known vulnerabilities" if databases else "not audited: --osv FILE looks for known vulnerabilities")
    _audit(source, databases)
    with tempfile.TemporaryDirectory(dir=out, prefix=".release-") as temporary:
        made = Path(temporary) / folder.name
        say("wheel and sdist")
        wheel, _ = build_distributions(source, made, epoch=epoch)
        write_inventory(made / f"fedthorax-{version}.cdx.json", wheel.name, version, source, [], epoch=epoch)
        for role in roles:
            say(f"{role}: fetching the wheels for Python {', '.join(pythons)}")
            wheels = Path(temporary) / f"wheels-{role}"
            wheels.mkdir()
            lock = lock_file(source, role).read_text(encoding="utf-8")
            fetch_wheels(source, lock, pythons, wheels)
            shutil.copyfile(wheel, wheels / wheel.name)
            bundle = write_bundle(BundleParts(source, role, version, pythons, lock, wheels), Path(temporary))
            _audit(source, databases, bundle / "requirements.txt")
            _complete(bundle, source, version, epoch)
            _seal(bundle, key, public)
            files, size = sizes(bundle)
            say(f"{role}: {bundle.name}, {files} files, {size / 1e6:.0f} MB")
            write_tar(bundle, made / f"{bundle.name}.tar", epoch)
            shutil.copyfile(bundle / "sbom.cdx.json", made / f"{bundle.name}.cdx.json")
            if with_packages:
                say(f"{role}: {add_package(bundle, made, source, epoch=epoch).name}")
            if with_images:
                say(f"{role}: {build_image(ImageParts(source, bundle, commit, epoch), made).name}")
            shutil.rmtree(bundle)
        _describe(made, version=version, commit=commit, epoch=epoch)
        _seal(made, key, public)
        made.rename(folder)
    say(f"done: {folder}, " + (f"signed with {fingerprint(public)}" if key else "not signed: --key FILE signs it"))
    return folder


def _audit(source: Path, databases: Sequence[Path], *requirements: Path) -> None:
    """Raises Refusal E_BUILD_FAILED if a known vulnerability needs an answer and has none."""
    said, is_well = audit(source, databases, requirements) if databases else ("", True)
    if not is_well:
        raise Refusal(reasons.BUILD_FAILED, step="the audit for known vulnerabilities", private=said)


def add_package(bundle: Path, made: Path, source: Path, *, epoch: int) -> Path:
    """Add the Debian package of a bundle and its bill of materials; return the package."""
    package = build_package(bundle, made, epoch=epoch)
    wheels = [path for path in sorted((bundle / WHEELS).glob("*.whl")) if not path.name.startswith("pip-")]
    inventory, version = made / f"{package.stem}.cdx.json", package.stem.split("_")[1]
    write_inventory(inventory, package.stem, version, source, wheels, epoch=epoch)
    return package


def _complete(bundle: Path, source: Path, version: str, epoch: int) -> None:
    """Add the licences and the bill of materials to a bundle."""
    wheels = sorted((bundle / WHEELS).glob("*.whl"))
    collect_licences(wheels, bundle / "licences", source / _LICENCE_OF_VIEWER)
    write_inventory(bundle / "sbom.cdx.json", bundle.name, version, source, wheels, epoch=epoch)


def _seal(folder: Path, key: Path | None, public: Path) -> None:
    write_sums(folder)
    if key:
        sign_sums(folder, key)
        verify_release(folder, [public])  # as a hospital does


def _describe(folder: Path, *, version: str, commit: str, epoch: int) -> None:
    """Write what somebody needs to know to build the same bytes again."""
    content = {
        "format": 1,
        "version": version,
        "commit": commit,
        "source_date_epoch": epoch,
        "python": ".".join(map(str, sys.version_info[:3])),
        "setuptools": metadata.version("setuptools"),
        "zlib": zlib.ZLIB_RUNTIME_VERSION,
    }
    (folder / "release.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main() -> int:
    """Read the options and make the release. A refusal is shown as a code and a remedy."""
    parser = argparse.ArgumentParser(prog="make release", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("dist"))
    parser.add_argument("--role", action="append", choices=ROLES, help="only this role; may be repeated")
    parser.add_argument("--python", action="append", choices=PYTHONS, help="default: the version that runs this")
    parser.add_argument("--key", type=Path, help="private key on P-256, P-384 or P-521 that signs the release")
    parser.add_argument(
        "--osv", type=Path, action="append", default=[], help="export of OSV; see federation.delivery.audit"
    )
    parser.add_argument(
        "--deb", action="store_true", help="with Debian packages; see federation.delivery.debian_package"
    )
    parser.add_argument("--images", action="store_true", help="with container images; see federation.delivery.images")
    options = parser.parse_args()
    pythons = options.python or [".".join(map(str, sys.version_info[:2]))]
    source = Path(__file__).resolve().parents[2]
    try:
        make_release(
            source,
            options.out,
            roles=options.role or ROLES,
            pythons=pythons,
            key=options.key,
            with_images=options.images,
            with_packages=options.deb,
            databases=options.osv,
        )
    except Refusal as refusal:
        sys.stderr.write(f"{refusal}\n{refusal.private}\n  {refusal.remedy}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
