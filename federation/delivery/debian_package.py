"""`make deb BUNDLE=DIR`: a package for Debian and Ubuntu from an unpacked offline bundle.

The package holds the installed tree: the program with each library of the bundle, in /opt/fedthorax, for the one Python
of the bundle. Nothing is fetched, neither now nor when the package is installed. It also holds the systemd units, the
manual page, and scripts that create the service's user. Needs dpkg-deb and that Python, and itself no library beside
Python's own: a hospital that has only the source and a bundle runs it without a network.

It is not made with debhelper, because a release is made on other distributions too: the scripts in debian/ do what it
would do, and are short.
"""

import argparse
import gzip
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from federation.delivery import debian, reasons
from models.refusal import Refusal

PROGRAM = Path("opt/fedthorax")
_SCRIPTS = ("preinst", "postinst", "prerm", "postrm")
_SERVICES = {  # restarted by an upgrade
    "node": ("fedthorax-node@*", "fedthorax-app@*", "fedthorax-listen@*"),
    "server": ("fedthorax-server@*",),
    "clinic": ("fedthorax-clinic@*",),
}
# Stopped by a removal, but not restarted by an upgrade: systemctl would wait for the end of an ingest.
_JOBS = {"node": ("fedthorax-ingest@*",), "server": (), "clinic": ()}
_USED = {  # programs beside Python that a role uses if they are there
    "node": "bubblewrap (>= 0.8), acl",
    "server": "nginx",
    "clinic": "nginx",
}
_ABOUT = {
    "node": "hospital's node of federated studies on chest CT",
    "server": "server of federated studies on chest CT",
    "clinic": "clinician's page for chest CT of a trained model",
}


def read_description(bundle: Path) -> dict[str, str]:
    """Return the lines of BUNDLE. Raises Refusal E_BUNDLE_UNFIT if it is for several Pythons, or no bundle."""
    file = bundle / "BUNDLE"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    about = dict(line.split("=", 1) for line in lines)
    if about.get("role") not in _SERVICES or " " in about.get("pythons", " "):
        raise Refusal(reasons.BUNDLE_UNFIT, private=str(bundle))
    return about


def control_files(about: dict[str, str], installed_kb: int) -> dict[str, str]:
    """Return the control files of a package by name."""
    role, package = about["role"], f"fedthorax-{about['role']}"
    others = sorted(f"fedthorax-{each}" for each in _SERVICES if each != role)
    control = {
        "Package": package,
        "Version": about["version"],
        "Architecture": "amd64",
        "Maintainer": "The fedthorax developers <fedthorax@example.org>",
        "Installed-Size": str(installed_kb),
        "Depends": f"python{about['pythons']}, libc6 (>= {about['glibc']}), passwd, debconf (>= 0.5) | debconf-2.0",
        "Recommends": _USED[role],
        "Conflicts": ", ".join(others),
        "Section": "science",
        "Priority": "optional",
        "Description": f"{_ABOUT[role]}\n Hospitals learn together to recognise severe Covid-19 from chest CT and PCR,"
        "\n and no raw data leave any of them.\n .\n The package holds the tested version of each library in /opt"
        "\n and fetches nothing.",
    }
    found = {"control": "".join(f"{key}: {value}\n" for key, value in control.items())}
    words = {
        "@PACKAGE@": package,
        "@OWN_UNITS@": files(debian).joinpath("own_units.sh").read_text(encoding="utf-8").rstrip(),
        "@SERVICES@": _quoted(_SERVICES[role]),
        "@UNITS@": _quoted(_SERVICES[role] + _JOBS[role]),
        "@APP_USER@": "fedthorax-app:/nonexistent" if role == "node" else "",
    }
    for name in (*_SCRIPTS, "templates"):
        suffix = "txt" if name == "templates" else "sh"
        found[name] = _filled(f"{name}.{suffix}", words)
    return found


def overrides(about: dict[str, str]) -> str:
    """Return what lintian need not report, with the reasons."""
    return _filled("lintian-overrides.txt", {"@PACKAGE@": f"fedthorax-{about['role']}"})


def _quoted(patterns: tuple[str, ...]) -> str:
    return " ".join(f"'{pattern}'" for pattern in patterns)


def _filled(name: str, words: dict[str, str]) -> str:
    text = files(debian).joinpath(name).read_text(encoding="utf-8")
    for mark, value in words.items():
        text = text.replace(mark, value)
    return text


def build_package(bundle: Path, out: Path, *, epoch: int) -> Path:
    """Build the package of a verified bundle in `out`; return its path. Raises Refusal: E_BUNDLE_UNFIT, E_BUILD_FAILED.

    `epoch`: seconds since 1970; the time of every file in the package.
    """
    bundle, out = bundle.resolve(), out.resolve()  # programs name the whole path of the folder that they are built in
    about = read_description(bundle)
    out.mkdir(parents=True, exist_ok=True)
    package = out / f"fedthorax-{about['role']}_{about['version']}_amd64.deb"
    with tempfile.TemporaryDirectory(dir=out, prefix=".deb-") as temporary:
        root = Path(temporary) / "root"
        _install(bundle, about, root)
        _add_files(bundle, about, root, epoch)
        _compile(about, root)
        size = sum(path.lstat().st_size for path in root.rglob("*") if not path.is_dir())
        (root / "DEBIAN").mkdir()
        for name, text in control_files(about, -(-size // 1024)).items():
            (root / "DEBIAN" / name).write_text(text, encoding="utf-8")
            (root / "DEBIAN" / name).chmod(0o755 if name in _SCRIPTS else 0o644)
        _write_sums(root)
        environment = {**os.environ, "SOURCE_DATE_EPOCH": str(epoch)}
        command = ["dpkg-deb", "--root-owner-group", "-Zxz", "-z1", "--build", str(root), str(package)]
        _run(command, environment)
    return package


def _install(bundle: Path, about: dict[str, str], root: Path) -> None:
    """Install the bundle below `root` as a user would, and give the files the paths that they will have."""
    (root / "opt").mkdir(parents=True)
    environment = {**os.environ, "XDG_CONFIG_HOME": str(root / "config")}
    python = f"/usr/bin/python{about['pythons']}"
    script = ["sh", str(bundle / "install.sh"), "--user", "--prefix", str(root / "opt"), "--python", python]
    _run(script, environment)
    installed, program = root / "opt" / f"fedthorax-{about['version']}", root / PROGRAM
    program.unlink()  # the link to it
    installed.rename(program)
    for path in (program / "pyvenv.cfg", *(program / "bin").iterdir()):
        if path.is_file() and not path.is_symlink():
            content = path.read_bytes()
            path.write_bytes(content.replace(str(installed).encode(), f"/{PROGRAM}".encode()))
    for stamp in program.glob(".install*"):
        stamp.unlink()
    shutil.rmtree(root / "config")


def _add_files(bundle: Path, about: dict[str, str], root: Path, epoch: int) -> None:
    """Add units, the command, the manual page and the documents."""
    package = f"fedthorax-{about['role']}"
    units, man, doc = root / "usr/lib/systemd/system", root / "usr/share/man/man1", root / "usr/share/doc" / package
    for folder in (units, man, doc, root / "usr/bin", root / "usr/share/lintian/overrides"):
        folder.mkdir(parents=True)
    for unit in sorted((bundle / "systemd" / "system").iterdir()):
        shutil.copyfile(unit, units / unit.name)
    (root / "usr/bin/fedthorax").symlink_to(f"/{PROGRAM}/bin/fedthorax")

    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(epoch)}
    environment.pop("PYTHONPATH", None)
    page = _run([str(root / PROGRAM / "bin" / "python"), "-I", "-m", "federation.cli.man_page"], environment)
    (man / "fedthorax.1.gz").write_bytes(gzip.compress(page.encode(), 9, mtime=0))
    shutil.copyfile(bundle / "doc" / "LICENSE", doc / "copyright")
    changes = (bundle / "doc" / "CHANGELOG.md").read_bytes()
    shutil.copyfile(bundle / "sbom.cdx.json", doc / "sbom.cdx.json")
    shutil.copytree(bundle / "licences", doc / "licences")
    (doc / "changelog.gz").write_bytes(gzip.compress(changes, 9, mtime=0))
    (root / "usr/share/lintian/overrides" / package).write_text(overrides(about), encoding="utf-8")
    for path in root.rglob("*"):
        if not path.is_symlink():  # whatever this process's umask is
            path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)


def _compile(about: dict[str, str], root: Path) -> None:
    """Compile all modules for the paths that they will have.

    Otherwise root would write them at the first start, and dpkg would not remove them. A module does not name the date
    of its source, because dpkg-deb sets the dates of newer files back to the package's own: each module would be stale,
    be compiled again at each start of a service, and differ for `dpkg --verify` once root had written it.
    """
    library = root / PROGRAM / "lib" / f"python{about['pythons']}"
    for cache in sorted(library.rglob("__pycache__")):
        shutil.rmtree(cache)
    options = ["-qq", "-f", "--invalidation-mode", "unchecked-hash", "-s", str(root), "-p", "/"]
    python = f"/usr/bin/python{about['pythons']}"
    _run([python, "-I", "-m", "compileall", *options, str(library)], os.environ, may_fail=True)


def _write_sums(root: Path) -> None:
    """Write DEBIAN/md5sums, which `dpkg --verify` reads. It detects damage; the release's signature detects fraud."""
    import hashlib

    lines = []
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root)
        if path.is_file() and not path.is_symlink() and name.parts[0] != "DEBIAN":
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
            lines.append(f"{digest}  {name}\n")
    (root / "DEBIAN" / "md5sums").write_text("".join(lines), encoding="utf-8")


def _run(command: list[str], environment: "os._Environ[str] | dict[str, str]", *, may_fail: bool = False) -> str:
    """Run a program, and return what it printed. Raises Refusal E_BUILD_FAILED."""
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    except OSError as error:
        raise Refusal(reasons.BUILD_FAILED, step=command[0], private=str(error)) from error
    if done.returncode and not may_fail:  # a library may hold templates that are no valid Python
        raise Refusal(reasons.BUILD_FAILED, step=command[0], private=(done.stdout + done.stderr)[-2000:])
    return done.stdout


def main() -> int:
    """Read the options and build the package. A refusal is shown as a code and a remedy."""
    from federation.delivery.distributions import source_epoch

    parser = argparse.ArgumentParser(prog="make deb", description=__doc__)
    parser.add_argument("bundle", type=Path, help="the folder of an unpacked bundle for one Python, verified before")
    parser.add_argument("--out", type=Path, default=Path("dist"))
    options = parser.parse_args()
    try:
        epoch = source_epoch(Path(__file__).resolve().parents[2])
        package = build_package(options.bundle, options.out, epoch=epoch)
    except Refusal as refusal:
        sys.stderr.write(f"{refusal}\n{refusal.private}\n  {refusal.remedy}\n")
        return 1
    sys.stdout.write(f"{package}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
