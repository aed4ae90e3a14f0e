"""`make images`: the container image of each role, from the bundles of a release, as OCI archives.

An image has two layers: files of Debian packages (`debian_root`), and /opt/fedthorax with the wheels of the role's
bundle, installed by their SHA-256 and without a network. Nothing comes from a hub. It runs as user 10001 with a
read-only root file system and without capabilities; only the clinic's, server's or site's folder below
/var/lib/fedthorax and /tmp are written. Needs root, buildah and mmdebstrap.

OCI images have no health check: whoever starts a container names it (`docs/containers/`, `docs/kubernetes/`).

https://github.com/opencontainers/image-spec
"""

import argparse
import resource
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from federation.delivery import reasons
from federation.delivery.bundle import WHEELS
from federation.delivery.checksums import sign_sums, verify_release, write_sums
from federation.delivery.debian_root import (
    GROUP,
    HOME,
    SUITES,
    USER,
    DebianPackage,
    fetch_packages,
    unpack_root,
)
from federation.delivery.distributions import commit_of, source_epoch
from federation.delivery.inventory import write_inventory
from models.refusal import Refusal

PROGRAM = "/opt/fedthorax"
COMMANDS = {
    "node": ("node", "start", "site"),
    "server": ("server", "start", "server"),
    "clinic": ("serve", "clinic"),
}
_TITLES = {"node": "a hospital's node", "server": "a study's server", "clinic": "the clinician's page and its API"}
# Headers and build files of PyTorch: nothing reads them at run time.
_UNUSED = ("torch/include", "torch/share", "torch/test")
_COMPILE = """\
import sys
from compileall import compile_dir
from py_compile import PycInvalidationMode
compile_dir(sys.argv[1], quiet=2, invalidation_mode=PycInvalidationMode.UNCHECKED_HASH)
"""
_INSTALLERS = ("pip*", "uv", "uvx")  # a program in a container has no use for them


@dataclass(frozen=True)
class ImageParts:
    """What an image is made of. `bundle`: the unpacked folder; `epoch`: the date of all files, Unix seconds."""

    source: Path
    bundle: Path
    commit: str
    epoch: int
    mirror: str = ""

    @property
    def settings(self) -> dict[str, str]:
        lines = (self.bundle / "BUNDLE").read_text(encoding="utf-8").splitlines()
        return dict(line.split("=", 1) for line in lines)

    @property
    def role(self) -> str:
        return self.settings["role"]

    @property
    def version(self) -> str:
        return self.settings["version"]

    @property
    def python(self) -> str:
        """The newest Python of the bundle that a release of Debian has. Raises Refusal E_IMAGE_PYTHON."""
        fitting = [python for python in self.settings["pythons"].split() if python in SUITES]
        if not fitting:
            raise Refusal(reasons.IMAGE_PYTHON, pythons=", ".join(SUITES))
        return fitting[-1]

    @property
    def name(self) -> str:
        """The name that the archive gives to the image where it is loaded."""
        return f"fedthorax-{self.role}:{self.version}"


def build_image(parts: ImageParts, out: Path) -> Path:
    """Build the image of a bundle into `out`, with its bill of materials beside it; return the archive.

    Raises Refusal: E_BUILD_FAILED, E_IMAGE_PYTHON.
    """
    for program in ("buildah", "mmdebstrap"):
        if shutil.which(program) is None:
            raise Refusal(reasons.BUILD_FAILED, step=f"looking for the program {program}")
    archive = out / f"fedthorax-{parts.version}-{parts.role}-image-linux-x86_64.oci.tar"
    # Names of this program only: the machine may have loaded, and may run, an image named `parts.name`. They are the
    # same in each build, because an image records the name of its base.
    base, whole = f"fedthorax-base-{parts.role}", f"fedthorax-build-{parts.role}"
    try:
        packages = _build_base(parts, base)
        _build_program(parts, base, whole)
        archive.unlink(missing_ok=True)
        _buildah("push", "--quiet", "--format=oci", whole, f"oci-archive:{archive}:{parts.name}")
    finally:  # without --force, which would remove containers: an equal image under another name keeps its layers
        subprocess.run(["buildah", "rmi", whole, base], capture_output=True, check=False)
    wheels = [path for path in sorted((parts.bundle / WHEELS).glob("*.whl")) if not path.name.startswith("pip-")]
    inventory = out / f"{archive.name.removesuffix('.oci.tar')}.cdx.json"
    name = inventory.name.removesuffix(".cdx.json")
    write_inventory(inventory, name, parts.version, parts.source, wheels, epoch=parts.epoch, packages=packages)
    return archive


def _build_base(parts: ImageParts, name: str) -> list[DebianPackage]:
    """Build the layer with Debian's files."""
    with tempfile.TemporaryDirectory() as temporary, _container("scratch") as container:
        fetched = Path(temporary)
        fetched.chmod(0o755)  # apt drops its rights
        packages = fetch_packages(parts.python, parts.role, fetched, parts.mirror)
        unpack_root(packages, Path(_buildah("mount", container)))
        _compile(container, f"python{parts.python}", f"/usr/lib/python{parts.python}")
        _commit(container, name, parts.epoch)
    return sorted(packages.values(), key=lambda package: package.name)


def _build_program(parts: ImageParts, base: str, image: str) -> None:
    """Add the layer with the program, and the image's settings."""
    with _container(base) as container:
        bundle = f"--volume={parts.bundle.resolve()}:/bundle:ro"
        _run(container, f"/usr/bin/python{parts.python}", "-I", "-m", "venv", "--without-pip", PROGRAM)
        pip = next((parts.bundle / WHEELS).glob("pip-*.whl"))
        _run(
            *(container, f"{PROGRAM}/bin/python", "-I", f"/bundle/{WHEELS}/{pip.name}/pip", "--isolated", "install"),
            *("--quiet", "--no-input", "--no-index", "--find-links", f"/bundle/{WHEELS}", "--require-hashes"),
            *("--only-binary", ":all:", "--no-cache-dir", "--no-compile", "--disable-pip-version-check"),
            *("--root-user-action", "ignore", "--requirement", "/bundle/requirements.txt"),
            options=[bundle],
        )
        root = Path(_buildah("mount", container))
        _trim(root / PROGRAM[1:], parts.python)
        _compile(container, f"{PROGRAM}/bin/python", f"{PROGRAM}/lib")
        for name in ("bundle", "run", "tmp"):  # what building has left
            shutil.rmtree(root / name, ignore_errors=True)
        for name, mode in (("run", 0o755), ("tmp", 0o1777)):
            (root / name).mkdir()
            (root / name).chmod(mode)
        _try(container)
        _buildah("config", *_settings(parts), container)
        _commit(container, image, parts.epoch)


def _try(container: str) -> None:
    """Run the program, and load the library that asks most of the system. Raises Refusal E_BUILD_FAILED."""
    user = [f"--user={USER}:{GROUP}"]
    _run(container, f"{PROGRAM}/bin/fedthorax", "--version", options=user)
    _run(container, f"{PROGRAM}/bin/python", "-I", "-c", "import torch, sqlite3, ssl, zoneinfo", options=user)


def _settings(parts: ImageParts) -> Iterator[str]:
    """Yield the options of `buildah config`."""
    environment = {
        "PATH": f"{PROGRAM}/bin:/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "HOME": "/tmp",  # noqa: S108 - a container's own
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        # The public authorities, as certifi lists them: there is no package of certificates.
        "SSL_CERT_FILE": f"{PROGRAM}/lib/python{parts.python}/site-packages/certifi/cacert.pem",
    }
    labels = {
        "title": f"fedthorax {parts.role}",
        "description": f"{_TITLES[parts.role]}; research use only, not a medical device",
        "version": parts.version,
        "revision": parts.commit,
        "created": datetime.fromtimestamp(parts.epoch, UTC).isoformat().replace("+00:00", "Z"),
        "licenses": "Apache-2.0",
    }
    yield from (f"--env={name}={value}" for name, value in environment.items())
    yield from (f"--label=org.opencontainers.image.{name}={value}" for name, value in labels.items())
    yield from (f"--port={port}/tcp" for port in parts.settings["ports"].split())
    yield f"--user={USER}:{GROUP}"
    yield f"--workingdir=/{HOME}"
    yield f'--entrypoint=["{PROGRAM}/bin/fedthorax"]'
    yield "--cmd=" + " ".join(COMMANDS[parts.role])
    yield "--stop-signal=SIGTERM"


def _trim(program: Path, python: str) -> None:
    """Remove what only building and testing use, the tests of libraries, and programs that install others."""
    packages = program / "lib" / f"python{python}" / "site-packages"
    for name in _UNUSED:
        shutil.rmtree(packages / name, ignore_errors=True)
    for path in [*packages.glob("pip*"), *sorted(packages.rglob("tests"))]:
        if path.name == "pip" or path.match("pip-*.dist-info") or (path.is_dir() and list(path.glob("test_*.py"))):
            shutil.rmtree(path)
    for path in [path for pattern in _INSTALLERS for path in (program / "bin").glob(pattern)]:
        path.unlink()


def _compile(container: str, python: str, folder: str) -> None:
    """Compile modules without their dates: the same source gives the same bytes. Templates do not compile."""
    _run(container, python, "-I", "-c", _COMPILE, folder)


@contextmanager
def _container(image: str) -> Iterator[str]:
    kinds = {"nofile": resource.RLIMIT_NOFILE, "nproc": resource.RLIMIT_NPROC}
    limits = {kind: resource.getrlimit(number)[1] for kind, number in kinds.items()}  # buildah's may be above them
    name = _buildah("from", "--pull-never", *(f"--ulimit={kind}={most}:{most}" for kind, most in limits.items()), image)
    try:
        yield name
    finally:
        subprocess.run(["buildah", "rm", name], capture_output=True, check=False)


def _commit(container: str, name: str, epoch: int) -> None:
    _buildah("commit", "--quiet", "--format=oci", f"--timestamp={epoch}", container, name)


def _run(container: str, *command: str, options: Sequence[str] = ()) -> None:
    """Run a command in a container without a network."""
    seed = ["--env=PYTHONHASHSEED=0", "--env=PYTHONDONTWRITEBYTECODE=1"]
    # A chroot needs no runtime, which often cannot start inside another container. It has the caller's network.
    without_network = ["unshare", "--net", "buildah", "run", "--isolation=chroot", *seed, *options]
    _output([*without_network, container, "--", *command], f"running {Path(command[0]).name} in the image")


def _buildah(*arguments: str) -> str:
    return _output(["buildah", *arguments], f"buildah {arguments[0]}")


def _output(command: Sequence[str], step: str) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise Refusal(reasons.BUILD_FAILED, step=step)
    return done.stdout.strip()


def make_images(release: Path, out: Path, *, source: Path, public: Path, key: Path | None, mirror: str = "") -> None:
    """Build the images of all bundles of a signed release into a new folder, with checksums; `key` signs them.

    Raises Refusal: E_RELEASE_SIGNATURE, E_RELEASE_FILES, E_RELEASE_THERE, those of `build_image`.
    """
    verify_release(release, [public])
    if out.exists():
        raise Refusal(reasons.RELEASE_THERE, private=str(out))
    commit, epoch = commit_of(source), source_epoch(source)
    out.mkdir(parents=True)
    for file in sorted(release.glob("*-linux-x86_64.tar")):
        with tempfile.TemporaryDirectory(dir=out) as temporary, tarfile.open(file) as archive:
            archive.extractall(temporary, filter="data")
            (bundle,) = Path(temporary).iterdir()
            made = build_image(ImageParts(source, bundle, commit, epoch, mirror), out)
        sys.stderr.write(f"{made.name}: {made.stat().st_size / 1e6:.0f} MB\n")
    write_sums(out)
    if key:
        sign_sums(out, key)


def main() -> int:
    """Read the options and build the images. A refusal is shown as a code and a remedy."""
    parser = argparse.ArgumentParser(prog="make images", description=__doc__)
    parser.add_argument("release", type=Path, help="the folder of a release with bundles")
    parser.add_argument("--trust", type=Path, required=True, help="the public key that signed the release")
    parser.add_argument("--out", type=Path, help="default: the release's folder with the ending -images")
    parser.add_argument("--key", type=Path, help="private key that signs the images' checksums")
    parser.add_argument("--mirror", default="", help="a mirror of Debian; default: mmdebstrap's own")
    options = parser.parse_args()
    out = options.out or options.release.with_name(f"{options.release.name}-images")
    source = Path(__file__).resolve().parents[2]
    try:
        make_images(options.release, out, source=source, public=options.trust, key=options.key, mirror=options.mirror)
    except Refusal as refusal:
        sys.stderr.write(f"{refusal}\n{refusal.private}\n  {refusal.remedy}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
