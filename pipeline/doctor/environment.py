"""Checks of the machine (versions, disk, memory, cores) and of the node's keys, certificate and settings."""

import os
import platform
import re
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from cryptography import x509

import models.reasons
from models.processor_report import report
from models.reason_tables import reasons_in
from models.refusal import Refusal
from pipeline.feeds.result_queue import listener_of
from pipeline.preprocessing.preprocess_settings import Preprocessing
from pipeline.site.folder import Site
from pipeline.system.check_line import Line, Status, refused

AREA, CONFIGURATION = "environment", "configuration"
# The versions that this release was tested with; a test compares the libraries with constraints.txt.
TESTED_PYTHON = "3.11"
TESTED = {
    "cryptography": "50.0.2",
    "dicomweb-client": "0.61.2",
    "flwr": "1.42.0",
    "hl7": "0.4.5",
    "monai": "1.6.1",
    "numpy": "2.4.6",
    "pydicom": "3.0.2",
    "pynetdicom": "3.0.4",
    "scipy": "1.17.1",
    "simpleitk": "2.5.7",
    "torch": "2.13.0",
}
KEEP_FREE_GB = 2.0
MOUNTS = Path("/proc/self/mountinfo")
# File systems that several machines can use at once (mount(8)). "fuse.NAME" is in user space.
NETWORK_FILE_SYSTEMS = {
    *("9p", "afs", "beegfs", "ceph", "cifs", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "smb3", "smbfs"),
    *(f"fuse.{name}" for name in ("ceph", "davfs2", "glusterfs", "rclone", "s3fs", "sshfs")),
}
GB_A_WORKER = 2.0  # to read and prepare a thin-slice chest of 600 slices
SOON = timedelta(days=60)


def machine(site: Site, settings: Preprocessing, new_series: int) -> Iterator[Line]:
    """Check the machine. `new_series`: number of series still to be prepared."""
    yield _python()
    yield _libraries()
    yield _disk(site, settings, new_series)
    yield _file_system(site)
    yield _memory()
    cores = len(os.sched_getaffinity(0))
    status: Status = "ok" if cores > 1 else "warn"
    says = f"{cores} cores" if cores > 1 else "1 core"
    yield Line(AREA, "processor", status, says, "" if cores > 1 else "Give the node two cores or more.")
    yield _compute(site)


def _python() -> Line:
    running = platform.python_version()
    if running.startswith(f"{TESTED_PYTHON}."):
        return Line(AREA, "Python", "ok", f"{running}, as tested")
    remedy = "No action is needed, unless something fails. Then try the tested version."
    return Line(AREA, "Python", "warn", f"{running}; this release was tested with {TESTED_PYTHON}", remedy)


def _libraries() -> Line:
    """Compare library versions without the part after a plus sign, which differs between builds of torch."""
    found = {}
    for name in TESTED:
        try:
            found[name] = version(name).partition("+")[0]
        except PackageNotFoundError:
            found[name] = "missing"
    other = [f"{name} {found[name]} (tested: {tested})" for name, tested in TESTED.items() if found[name] != tested]
    if not other:
        return Line(AREA, "libraries", "ok", f"fedthorax {version('fedthorax')}; {len(TESTED)} libraries as tested")
    status: Status = "fail" if "missing" in found.values() else "warn"
    return Line(AREA, "libraries", status, "; ".join(other), "Reinstall fedthorax with its constraints.txt.")


def _disk(site: Site, settings: Preprocessing, new_series: int) -> Line:
    needed_gb = new_series * 4 * settings.shape[0] * settings.shape[1] * settings.shape[2] / 1e9  # two float16
    free_gb = shutil.disk_usage(site.folder).free / 1e9
    detail = f"{free_gb:.1f} GB free; {new_series} series to prepare need {needed_gb:.2f} GB"
    if free_gb < needed_gb:
        return Line(AREA, "disk", "fail", "not enough space", "Free space, or move the site's folder.", detail)
    reserve_gb, of = _reserve(site)
    if free_gb < needed_gb + reserve_gb:
        remedy = f"Free space, or lower `keep_free_gb` in {of} of site.toml: nothing is stored with less free space."
        return Line(AREA, "disk", "fail", f"less than {reserve_gb:g} GB would be left", remedy, detail)
    if free_gb < needed_gb + KEEP_FREE_GB:
        return Line(AREA, "disk", "warn", "almost no space will be left", "Free space soon.", detail)
    return Line(AREA, "disk", "ok", "enough space", detail=detail)


def _file_system(site: Site) -> Line:
    """Check that the site's folder, and each folder in it, is on a local disk: locks and SQLite need one."""
    name = "file system"
    try:
        mounts = MOUNTS.read_text(encoding="utf-8", errors="replace")
        folders = [site.folder, *(path for path in sorted(site.folder.iterdir()) if path.is_dir())]
        kinds = {file_system_of(folder.resolve(), mounts): folder for folder in reversed(folders)}
    except OSError:
        return Line(AREA, name, "skip", "this system does not report its file systems")
    for kind, folder in kinds.items():
        if kind in NETWORK_FILE_SYSTEMS:
            says = f"the site's folder or a part of it is on a network file system ({kind})"
            remedy = "Move it to a local disk, and back up to the network (docs/operations.md, on NFS)."
            return Line(AREA, name, "warn", says, remedy, private=str(folder))
    return Line(AREA, name, "ok", "the site's folder is on a local file system")


def file_system_of(folder: Path, mounts: str) -> str:
    """Return the kind of file system of a folder without links. `mounts`: /proc/self/mountinfo (proc(5))."""
    kind, depth = "", 0
    for line in mounts.splitlines():
        place, _, system = line.partition(" - ")
        # Blanks and backslashes in a path are written as three octal digits.
        point = Path(re.sub(r"\\([0-7]{3})", lambda digits: chr(int(digits[1], 8)), place.split()[4]))
        if folder.is_relative_to(point) and len(point.parts) >= depth:  # a later mount covers an earlier one
            kind, depth = system.split()[0], len(point.parts)
    return kind


def _reserve(site: Site) -> tuple[float, str]:
    """Return the free space that a table of site.toml wants to be kept, and its name; 0 if there is none."""
    kept = [(0.0, "")]
    if site.settings.pacs is not None:
        kept.append((site.settings.pacs.limits.keep_free_gb, "[pacs.limits]"))
    if table := listener_of(site):
        kept.append((table.keep_free_gb, "[laboratory.listener]"))
    return max(kept)


def _memory() -> Line:
    needed = len(os.sched_getaffinity(0)) * GB_A_WORKER
    try:
        available = available_gb()
    except (OSError, ValueError, KeyError):
        return Line(AREA, "memory", "skip", "this system does not report its memory")
    says = f"{available:.0f} GB available; series of many thin slices need {GB_A_WORKER:.0f} GB per core"
    if available >= needed:
        return Line(AREA, "memory", "ok", says)
    return Line(AREA, "memory", "warn", says, "End other programs, or give the node fewer cores.")


def _compute(site: Site) -> Line:
    """Check the processor of [compute]: whether it is there, agrees with the CPU, and repeats its results."""
    found, name = report(site.settings.compute), "compute"
    if found.refused:
        (reason,) = (reason for reason in reasons_in(models.reasons) if reason.code == found.refused)
        return Line(AREA, name, "fail", found.says, reason.remedy, private=found.problem)
    if found.problem:
        says = f"{found.says}, because the GPU cannot be used"
        return Line(AREA, name, "warn", says, models.reasons.COMPUTE_DEVICE.remedy, private=found.problem)
    if not found.repeats:
        says = f"{found.says}, but the same training step gives other bits each time"
        return Line(AREA, name, "warn", says, "Set precision in [compute] to fp32, or device to cpu.", found.detail)
    return Line(AREA, name, "ok", found.says, detail=found.detail)


def available_gb() -> float:
    """Return the memory available without swapping (proc(5)), or the rest of the control group if that is less."""
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(lines["MemAvailable"].split()[0]) * 1024
    group = Path("/sys/fs/cgroup")
    if (group / "memory.max").is_file() and (limit := (group / "memory.max").read_text().strip()) != "max":
        available = min(available, int(limit) - int((group / "memory.current").read_text()))
    return available / 1e9


def configuration(site: Site) -> Iterator[Line]:
    """Check site.toml and its files: keys and secrets are valid and private, and the site's folder is writable."""
    settings = site.settings
    source = f"the PACS over {settings.pacs.protocol}" if settings.pacs else "a folder"
    events = ", ".join(settings.join.severe_events)
    labels = "a labels file" if settings.labels else f"laboratory and outcomes; severe: {events}"
    labels = f"labels from {labels}" if settings.has_labels else "no labels: chest CT only"
    yield Line(CONFIGURATION, "site.toml", "ok", f"valid; scans from {source}, {labels}")
    try:
        site.pseudonym("")
        yield Line(CONFIGURATION, "pseudonym key", "ok", "present and intact")
    except Refusal as refusal:
        yield refused(CONFIGURATION, "pseudonym key", refusal)
    yield _permissions(site)
    if site.settings.server.address:
        yield _certificate(site.ca_certificate)


def _permissions(site: Site) -> Line:
    name = "permissions"
    if not os.access(site.folder, os.W_OK):
        remedy = "Make the node's user the owner of the site's folder."
        return Line(CONFIGURATION, name, "fail", "this user cannot write to the site's folder", remedy)
    shared = [path for path in secret_files(site) if path.is_file() and path.stat().st_mode & 0o077]
    if not shared:
        return Line(CONFIGURATION, name, "ok", "only the node's user can read keys and passwords")
    remedy = "Restrict access to the node's user: chmod 600 on the files, 700 on the folder keys."
    places = ", ".join(map(str, shared))
    return Line(CONFIGURATION, name, "fail", "other users can read keys or passwords", remedy, private=places)


def secret_files(site: Site) -> list[Path]:
    """Return the files that contain a key, a password or a token."""
    pacs = site.settings.pacs
    tables = (*((pacs.dicomweb, pacs.dimse) if pacs else ()), listener_of(site), site.settings.fhir, site.settings.omop)
    keys = ("password_file", "token_file", "client_key", "key")
    named = [getattr(table, key, None) for table in tables for key in keys]
    return [site.folder / "keys" / "pseudonym.key", site.node_key, *(site.folder / path for path in named if path)]


def _certificate(path: Path) -> Line:
    """Check the certificate of the study's authority, which verifies the server's certificate."""
    name = "study's certificate"
    ask = "Ask the study's office for its ca.crt, and store it at the path of [server] ca_certificate in site.toml."
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        return Line(
            CONFIGURATION,
            name,
            "fail",
            "the study's certificate is missing or damaged",
            ask,
            private=f"{path}: {error}",
        )
    now, until = datetime.now(UTC), certificate.not_valid_after_utc
    says = f"valid until {until:%Y-%m-%d}"
    if not certificate.not_valid_before_utc <= now < until:
        return Line(
            CONFIGURATION,
            name,
            "fail",
            f"the study's certificate is not valid today; {says}",
            f"{ask} Also check this machine's date.",
        )
    is_soon = until < now + SOON
    return Line(CONFIGURATION, name, "warn" if is_soon else "ok", says, ask if is_soon else "")
