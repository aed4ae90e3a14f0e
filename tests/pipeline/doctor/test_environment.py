"""Checks of the machine and the site's own files: each problem is a line with a remedy."""

import shutil
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from models.processor_report import ProcessorReport
from pipeline.doctor import environment
from pipeline.doctor.environment import TESTED, configuration, machine
from pipeline.preprocessing.preprocess_settings import Preprocessing
from pipeline.site.folder import Site, init_site
from pipeline.system.check_line import Line

SETTINGS = '[site]\nname = "ward"\n[laboratory]\nfile = "pcr.csv"\n[outcomes]\nfile = "outcomes.csv"\n'
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return init_site(tmp_path / "site", SETTINGS)


def of_machine(site: Site, new_series: int = 0) -> dict[str, Line]:
    return {line.name: line for line in machine(site, Preprocessing(), new_series)}


def of_configuration(site: Site) -> dict[str, Line]:
    return {line.name: line for line in configuration(site)}


def constraints() -> dict[str, SpecifierSet]:
    """The version constraints of constraints.txt by library. Options, URLs, extras and markers are not allowed."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    bound = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert not any(each.url or each.extras or each.marker for each in bound)
    assert len({canonicalize_name(each.name) for each in bound}) == len(bound)
    return {canonicalize_name(each.name): each.specifier for each in bound}


def asked_for() -> list[Requirement]:
    """The requirements in pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [each for extra in project["optional-dependencies"].values() for each in extra]
    return [Requirement(each) for each in [*project["dependencies"], *extras] if not each.startswith("fedthorax[")]


@pytest.mark.parametrize(("free_gb", "status"), [(11, "fail"), (13.5, "ok")])
def test_space_that_pacs_or_listener_keep_free_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_gb: float, status: str
) -> None:
    """Otherwise only a pull, or a message that is not accepted, would show it."""
    queue = '[laboratory]\nformat = "hl7"\n[laboratory.listener]\nkeep_free_gb = 11.5\n'
    site = init_site(tmp_path / "site", SETTINGS.replace('[laboratory]\nfile = "pcr.csv"\n', queue))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free_gb * 1e9))
    line = of_machine(site)["disk"]
    assert line.status == status
    assert ("[laboratory.listener]" in line.remedy) == (status == "fail")


@pytest.mark.parametrize(
    ("mounted", "kind", "status"),
    [
        ("/srv", "nfs4", "warn"),
        ("/srv/site/cohort", "cifs", "warn"),  # a part of the folder
        ("/srv/site", "ext4", "ok"),
        ("/srv/sit", "nfs", "ok"),  # another folder with a similar name
    ],
)
def test_site_on_a_network_file_system_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mounted: str, kind: str, status: str
) -> None:
    site, table = init_site(tmp_path / "a site", SETTINGS), tmp_path / "mountinfo"
    (site.folder / "cohort").mkdir(exist_ok=True)
    point = mounted.replace("/srv", str(tmp_path)).replace("/site", "/a\\040site")
    lines = ["27 1 254:0 / / rw,relatime - ext4 /dev/vda rw", f"41 27 0:50 / {point} rw shared:7 - {kind} far:/x rw"]
    table.write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(environment, "MOUNTS", table)
    line = of_machine(site)["file system"]
    assert line.status == status
    assert (kind in line.says) == (status == "warn")
    assert str(tmp_path) not in line.says + line.remedy


def test_last_of_several_mounts_at_one_place_counts(tmp_path: Path) -> None:
    mounts = "1 0 8:1 / / rw - ext4 a rw\n2 1 0:9 / /data rw - nfs4 b rw\n3 1 8:2 / /data rw - xfs c rw\n"
    assert environment.file_system_of(Path("/data/site"), mounts) == "xfs"
    assert environment.file_system_of(Path("/other"), mounts) == "ext4"
    assert environment.file_system_of(Path("/other"), "") == ""


def test_system_without_a_table_of_mounts_is_skipped(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "MOUNTS", site.folder / "no-such-file")
    assert of_machine(site)["file system"].status == "skip"


def test_tested_versions_match_the_constraints() -> None:
    pinned = {each.name: each.specifier for each in asked_for() if str(each.specifier).startswith("==")}
    assert pinned.keys() == {"flwr"}  # in pyproject.toml, not in constraints.txt
    for name, version in TESTED.items():
        specifier = {**constraints(), **pinned}[canonicalize_name(name)]
        assert specifier.contains(version), name
        assert name == "torch" or str(specifier) == f"=={version}"


def test_constraints_pin_one_version_per_library_and_one_torch_minor_version() -> None:
    """torch builds (2.13.0+cpu, +cu130, ...) differ between machines, so no single build may be pinned."""
    bound = constraints()
    loose = {name: specifier for name, specifier in bound.items() if [each.operator for each in specifier] != ["=="]}
    assert loose == {"torch": SpecifierSet(">=2.13,<2.14")}
    assert not any("+" in str(specifier) or "*" in str(specifier) for specifier in bound.values())
    assert loose["torch"].contains("2.13.1+cpu") and not loose["torch"].contains("2.14.0")


def test_constraints_satisfy_the_requirements_of_the_package() -> None:
    bound = constraints()
    for each in asked_for():
        versions = [part.version for part in bound.get(canonicalize_name(each.name), ()) if part.operator != "<"]
        assert versions or each.name == "flwr", each.name
        assert all(each.specifier.contains(version) for version in versions), each.name


def test_other_library_version_is_a_warning_and_a_missing_library_a_failure(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "version", lambda name: TESTED.get(name, "0.1") + "+cpu")
    assert of_machine(site)["libraries"].status == "ok", "builds of the same version are equivalent"
    monkeypatch.setattr(environment, "version", lambda name: "0.9" if name == "numpy" else TESTED.get(name, "0.1"))
    line = of_machine(site)["libraries"]
    assert (line.status, line.says) == ("warn", f"numpy 0.9 (tested: {TESTED['numpy']})")
    monkeypatch.setitem(TESTED, "no-such-library", "1.0")
    monkeypatch.undo()
    monkeypatch.setitem(TESTED, "no-such-library", "1.0")
    assert of_machine(site)["libraries"].status == "fail"


def test_other_python_version_is_a_warning(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.python_version", lambda: "3.99.1")
    line = of_machine(site)["Python"]
    assert line.status == "warn"
    assert line.remedy


@pytest.mark.parametrize(("free_gb", "status"), [(0.4, "fail"), (1.0, "warn"), (2.4, "warn"), (2.6, "ok")])
def test_free_disk_space_is_checked(site: Site, monkeypatch: pytest.MonkeyPatch, free_gb: float, status: str) -> None:
    """1000 prepared scans of 40 x 56 x 56 voxels with two 2-byte numbers each need 0.5 GB."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free_gb * 1e9))
    line = of_machine(site, new_series=1000)["disk"]
    assert line.status == status
    assert "1000" in line.detail and "1000" not in line.says
    assert bool(line.remedy) == (status != "ok")


@pytest.mark.parametrize(("available_gb", "status"), [(3.9, "warn"), (4.1, "ok")])
def test_available_memory_per_core_is_checked(
    site: Site, monkeypatch: pytest.MonkeyPatch, available_gb: float, status: str
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.setattr(environment, "available_gb", lambda: available_gb)
    assert of_machine(site)["memory"].status == status


def test_unknown_available_memory_is_skipped(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> float:
        raise FileNotFoundError

    monkeypatch.setattr(environment, "available_gb", missing)
    assert of_machine(site)["memory"].status == "skip"


def test_single_core_is_a_warning(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {3})
    assert of_machine(site)["processor"].status == "warn"


# --- processor of networks --------------------------------------------------------------------------------


def compute_line(site: Site, monkeypatch: pytest.MonkeyPatch, **found: object) -> Line:
    monkeypatch.setattr(environment, "report", lambda settings: ProcessorReport.model_validate(found))
    return of_machine(site)["compute"]


def test_processor_of_networks_is_shown(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = {
        "device": "cuda:0",
        "name": "NVIDIA L4",
        "precision": "fp32",
        "free_gb": 20,
        "total_gb": 24,
        "driver": "535.1",
    }
    line = compute_line(site, monkeypatch, **gpu)
    assert (line.status, line.remedy) == ("ok", "")
    assert line.exactly == ("networks are computed on the GPU NVIDIA L4, in fp32: 20.0 of 24.0 GB free, driver 535.1")
    assert compute_line(site, monkeypatch, device="cpu").exactly == "networks are computed on the CPU"


@pytest.mark.parametrize(
    ("found", "status", "says"),
    [
        ({"refused": "E_COMPUTE_DEVICE"}, "fail", "E_COMPUTE_DEVICE"),
        ({"refused": "E_COMPUTE_PRECISION"}, "fail", "E_COMPUTE_PRECISION"),
        ({"device": "cpu"}, "warn", "the GPU cannot be used"),
        ({"device": "cuda:0", "repeats": False, "problem": ""}, "warn", "other bits"),
    ],
)
def test_processor_that_does_not_work_has_a_remedy(
    site: Site, monkeypatch: pytest.MonkeyPatch, found: dict[str, object], status: str, says: str
) -> None:
    line = compute_line(site, monkeypatch, **{"problem": "libcuda at /opt/secret", **found})
    assert line.status == status and says in line.says and "[compute]" in line.remedy
    assert "secret" not in str(line.to_json())


def test_new_site_passes_the_configuration_checks(site: Site) -> None:
    assert {line.status for line in configuration(site)} == {"ok"}


def test_damaged_pseudonym_key_is_a_failure_without_its_path(site: Site) -> None:
    (site.folder / "keys" / "pseudonym.key").write_bytes(b"short")
    line = of_configuration(site)["pseudonym key"]
    assert (line.status, line.says.split(":")[0]) == ("fail", "E_SITE_KEY")
    assert str(site.folder) not in line.says + line.remedy + line.detail
    assert str(site.folder) in line.private


def test_secrets_readable_by_others_are_a_failure(tmp_path: Path) -> None:
    pacs = '[pacs]\nprotocol = "dicomweb"\n[pacs.dicomweb]\nurl = "https://pacs.example"\ntoken_file = "keys/token"\n'
    site = init_site(tmp_path / "site", SETTINGS + pacs)
    token = site.folder / "keys" / "token"
    token.write_text("secret")
    for path, mode, status in ((token, 0o640, "fail"), (token, 0o600, "ok")):
        path.chmod(mode)
        line = of_configuration(site)["permissions"]
        assert line.status == status
        assert (str(token) in line.private) == (status == "fail")
    (site.folder / "keys" / "pseudonym.key").chmod(0o604)
    assert of_configuration(site)["permissions"].status == "fail"


def certificate(path: Path, *, first: timedelta, last: timedelta) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "synthetic authority")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now + first)
        .not_valid_after(now + last)
        .sign(key, hashes.SHA256())
    )
    path.write_bytes(made.public_bytes(Encoding.PEM))


@pytest.mark.parametrize(
    ("first", "last", "status"), [(-10, 400, "ok"), (-10, 59, "warn"), (-10, -1, "fail"), (1, 400, "fail")]
)
def test_validity_of_the_studys_certificate_is_checked(tmp_path: Path, first: int, last: int, status: str) -> None:
    site = init_site(tmp_path / "site", SETTINGS + '[server]\naddress = "study.example:443"\n')
    assert of_configuration(site)["study's certificate"].status == "fail", "the certificate is missing"
    certificate(site.ca_certificate, first=timedelta(days=first), last=timedelta(days=last))
    line = of_configuration(site)["study's certificate"]
    assert (line.status, bool(line.remedy)) == (status, status != "ok")
    site.ca_certificate.write_text("no certificate")
    assert of_configuration(site)["study's certificate"].status == "fail"


def test_no_certificate_is_required_without_a_server(site: Site) -> None:
    assert "study's certificate" not in of_configuration(site)
