"""The control files of the Debian package. `make deb` builds the package; docs/delivery.md says what was tried."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from federation.delivery.debian_package import control_files, overrides, read_description
from federation.delivery.reasons import INSTALL_UNITS
from models.refusal import Refusal
from tests.federation.delivery.conftest import SYSTEMCTL

ROOT = Path(__file__).resolve().parents[3]
ROLES = ("node", "server", "clinic")


def about(role: str) -> dict[str, str]:
    return {"role": role, "version": "0.1.0", "pythons": "3.11", "glibc": "2.28"}


@pytest.mark.parametrize("role", ROLES)
def test_control_files_are_complete(role: str) -> None:
    found = control_files(about(role), 1234)
    assert set(found) == {"control", "preinst", "postinst", "prerm", "postrm", "templates"}
    control = found["control"]
    fields = dict(re.findall(r"^([A-Z][\w-]*): (.*)$", control, re.M))
    assert (fields["Package"], fields["Version"], fields["Installed-Size"]) == (f"fedthorax-{role}", "0.1.0", "1234")
    assert "python3.11" in fields["Depends"] and "libc6 (>= 2.28)" in fields["Depends"]
    assert role not in fields["Conflicts"].replace("fedthorax-", "").split(", ")
    assert len(fields["Description"]) < 80 and control.endswith("\n")
    for text in (*found.values(), overrides(about(role))):
        assert not re.search(r"@[A-Z_]+@", text)
    assert ("useradd" in found["postinst"]) and ("fedthorax-app" in found["postinst"]) == (role == "node")


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("name", ["preinst", "postinst", "prerm", "postrm"])
def test_scripts_are_valid_shell(role: str, name: str, tmp_path: Path) -> None:
    script = control_files(about(role), 1)[name]
    (tmp_path / name).write_text(script)
    assert subprocess.run(["sh", "-n", tmp_path / name], check=False).returncode == 0
    assert script.startswith("#!/bin/sh\nset -e\n")


def test_data_are_deleted_only_at_a_purge_after_a_question_whose_default_is_no() -> None:
    found = control_files(about("node"), 1)
    assert "Default: false" in found["templates"]
    for name in ("preinst", "postinst", "prerm"):
        assert "rm -r" not in found[name]
    removal = found["postrm"].index("rm -rf /var/lib/fedthorax")
    assert found["postrm"].count("rm -rf") == 1 and found["postrm"].count('purge "$@"') == 1
    assert "install -d -m 755 /opt" in found["postrm"]  # dpkg removes it when it is empty
    assert found["postrm"].rindex('[ "$answer" = true ]', 0, removal) > found["postrm"].index("purge() {")


# Folders of the test in place of the machine's, and an administrator who answers yes.
_PURGE = """
set -e
for each in /var/lib /etc/systemd/system /opt /srv /usr/share/debconf; do mount --bind "$1$each" $each; done
PATH=$1/bin:$PATH exec sh "$1/postrm" purge
"""


@pytest.mark.parametrize(
    "unit",
    [
        "",
        "/opt/fedthorax/bin/fedthorax",
        "/srv/fedthorax/bin/fedthorax",
        "-/srv/fedthorax/bin/fedthorax",
        "/srv/run-node",
        "/usr/bin/nice -n 5 /srv/fedthorax/bin/fedthorax",
        "/bin/sh -c '/srv/fedthorax/bin/fedthorax node run'",
    ],
)
def test_purge_spares_what_a_program_with_another_prefix_uses(tmp_path: Path, unit: str) -> None:
    folders = ("/var/lib", "/etc/systemd/system", "/opt", "/srv", "/usr/share/debconf")
    namespaces = subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False)
    if namespaces.returncode or not all(Path(each).is_dir() for each in folders):
        pytest.skip("this machine forbids mount namespaces, or is not Debian")
    for each in folders:
        (tmp_path / each[1:]).mkdir(parents=True)
    answers = "db_get() { RET=true; }\n" + "".join(f"db_{each}() {{ :; }}\n" for each in ("version", "capb", "input"))
    answers += "db_go() { :; }\ndb_purge() { :; }\n"
    (tmp_path / "usr/share/debconf/confmodule").write_text(answers)
    for name in ("srv/fedthorax/bin/fedthorax", "srv/run-node"):
        program = tmp_path / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    if unit:  # the second is a copy of the package's own, as `systemctl edit --full` makes it
        text = f"[Service]\nExecStart={unit} node start /var/lib/fedthorax/%i\n"
        (tmp_path / "etc/systemd/system/fedthorax-node@.service").write_text(text)
    key = tmp_path / "var/lib/fedthorax/north/keys/pseudonym.key"
    key.parent.mkdir(parents=True)
    key.touch()
    (tmp_path / "bin").mkdir()
    for name, script in (("id", "exit 0"), ("systemctl", "exit 0"), ("userdel", f"echo $1 >>{tmp_path / 'deleted'}")):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "postrm").write_text(control_files(about("node"), 1)["postrm"])
    command = ["unshare", "-rm", "sh", "-c", _PURGE, "sh", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    spared = "/srv" in unit
    assert key.exists() == spared
    assert (tmp_path / "deleted").exists() != spared
    assert ("another installation of fedthorax is there" in done.stderr) == spared


# A script of the maintainer on folders of the test.
_SCRIPT = """
set -e
for each in /etc/systemd/system /opt /run; do mount --bind "$1$each" $each; done
mkdir -p /run/systemd/system
script=$2 && shift 2
PATH=${script%/*}/bin:$PATH exec sh "$script" "$@"
"""


def run_script(tmp_path: Path, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script of the node's package, with a systemctl that tells what `running` lists."""
    namespaces = subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False)
    if namespaces.returncode or not Path("/etc/systemd/system").is_dir():
        pytest.skip("this machine forbids mount namespaces, or has no systemd")
    for folder in ("etc/systemd/system", "opt", "run", "bin"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    for program, text in (("systemctl", SYSTEMCTL.format(folder=tmp_path)), ("id", ""), ("install", "")):
        (tmp_path / "bin" / program).write_text(text or "#!/bin/sh\n")
        (tmp_path / "bin" / program).chmod(0o755)
    (tmp_path / name).write_text(control_files(about("node"), 1)[name])
    command = ["unshare", "-rm", "sh", "-c", _SCRIPT, "sh", tmp_path, tmp_path / name, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("name", "started", "refused"),
    [
        ("fedthorax-node@.service", "/srv/fedthorax/bin/fedthorax", True),
        ("fedthorax-node@north.service", "/srv/opt/fedthorax/bin/fedthorax", True),
        ("fedthorax-ingest@.service", "/srv/fedthorax/bin/fedthorax", True),
        ("fedthorax-node@.service", "/usr/bin/nice -n 5 /srv/fedthorax/bin/fedthorax", True),
        ("fedthorax-clinic@.service", "/srv/fedthorax/bin/fedthorax", False),  # the package has no such unit
        ("fedthorax-node@.service", "/opt/fedthorax/bin/fedthorax", False),
        ("fedthorax-node@.service", "/usr/bin/nice /opt/fedthorax/bin/fedthorax", False),
    ],
)
def test_installation_refuses_units_that_would_hide_its_own(
    tmp_path: Path, name: str, started: str, refused: bool
) -> None:
    unit = tmp_path / "etc/systemd/system" / name
    unit.parent.mkdir(parents=True)
    unit.write_text(f"[Service]\nExecStart={started} node start /var/lib/fedthorax/%i\n")
    done = run_script(tmp_path, "preinst", "install")
    assert done.returncode == int(refused), done.stderr
    if refused:
        says = INSTALL_UNITS.says.format(
            unit=f"/etc/systemd/system/{name}",
            prefix=started.rsplit(maxsplit=1)[-1].removesuffix("/fedthorax/bin/fedthorax"),
        )
        assert done.stderr == f"{INSTALL_UNITS.code}: {says}\n  {INSTALL_UNITS.remedy}\n"
    assert run_script(tmp_path, "preinst", "upgrade", "0.1.0").returncode == 0  # both are there already


@pytest.mark.parametrize(
    ("folder", "setting", "refused"),
    [
        ("fedthorax-node@.service.d", "ExecStart=\nExecStart=/srv/fedthorax/bin/fedthorax node start %i", True),
        ("fedthorax-node@north.service.d", "ExecStart = /srv/fedthorax/bin/fedthorax node start %i", True),
        ("fedthorax-.service.d", "ExecStart=/srv/fedthorax/bin/fedthorax node start %i", True),
        ("fedthorax-clinic@.service.d", "ExecStart=/srv/fedthorax/bin/fedthorax serve", False),
        ("fedthorax-node@.service.d", "ExecStart=\nExecStart=/usr/bin/nice /opt/fedthorax/bin/fedthorax node", False),
        ("fedthorax-node@.service.d", "ExecStart=\nUser=someone\nExecStartPre=/srv/fedthorax/bin/fedthorax", False),
    ],
)
def test_installation_refuses_drop_ins_that_start_another_program(
    tmp_path: Path, folder: str, setting: str, refused: bool
) -> None:
    drop_in = tmp_path / "etc/systemd/system" / folder / "override.conf"
    drop_in.parent.mkdir(parents=True)
    drop_in.write_text(f"[Service]\n{setting}\n")
    done = run_script(tmp_path, "preinst", "install")
    assert done.returncode == int(refused), done.stderr
    if refused:
        says = INSTALL_UNITS.says.format(unit=f"/etc/systemd/system/{folder}/override.conf", prefix="/srv")
        assert done.stderr.startswith(f"{INSTALL_UNITS.code}: {says}\n")


@pytest.mark.parametrize(
    ("script", "command"),
    [
        (("prerm", "remove"), "stop fedthorax-node@north.service fedthorax-ingest@north.timer"),
        (("postinst", "configure", "0.1.0"), "try-restart fedthorax-node@north.service"),
    ],
)
def test_only_services_of_the_packages_program_are_stopped_or_restarted(
    tmp_path: Path, script: tuple[str, ...], command: str
) -> None:
    own, other = "/opt/fedthorax/bin/fedthorax", "/srv/opt/fedthorax/bin/fedthorax"
    running = {"fedthorax-node@north.service": own, "fedthorax-node@south.service": other}
    running |= {"fedthorax-listen@south.service": other, "fedthorax-clinic@north.service": own}
    running |= {"fedthorax-ingest@north.timer": "", "fedthorax-ingest@north.service": own}
    running |= {"fedthorax-ingest@south.timer": "", "fedthorax-ingest@south.service": other}
    (tmp_path / "running").write_text("".join(f"{unit} {program}\n" for unit, program in running.items()))
    if script[0] == "prerm":
        command += " fedthorax-ingest@north.service"
    done = run_script(tmp_path, *script)
    assert done.returncode == 0, done.stderr
    asked = [line for line in (tmp_path / "systemctl.log").read_text().splitlines() if line != "daemon-reload"]
    assert asked == [command]
    (tmp_path / "running").write_text("fedthorax-node@south.service " + other)
    (tmp_path / "systemctl.log").write_text("")
    assert run_script(tmp_path, *script).returncode == 0
    assert (tmp_path / "systemctl.log").read_text().replace("daemon-reload\n", "") == ""


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
def test_dpkg_accepts_the_control_file(tmp_path: Path) -> None:
    for name, text in control_files(about("node"), 1).items():
        (tmp_path / "root" / "DEBIAN").mkdir(parents=True, exist_ok=True)
        path = tmp_path / "root" / "DEBIAN" / name
        path.write_text(text)
        path.chmod(0o644 if name in ("control", "templates") else 0o755)
    command = ["dpkg-deb", "--root-owner-group", "--build", tmp_path / "root", tmp_path / "a.deb"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("text", ["", "role=node\npythons=3.11 3.12\n", "role=other\npythons=3.11\n"])
def test_unfit_bundle_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "BUNDLE").write_text(text)
    with pytest.raises(Refusal, match="E_BUNDLE_UNFIT"):
        read_description(tmp_path)


def test_package_is_built_without_any_library(tmp_path: Path) -> None:
    """`-S`: Python finds its own modules and those of the source, and nothing that was installed."""
    command = [sys.executable, "-S", "-m", "federation.delivery.debian_package", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env={}, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.startswith("E_BUNDLE_UNFIT")


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_deb_installs_nothing() -> None:
    command = ["make", "--dry-run", "--always-make", "deb", "BUNDLE=some-bundle"]
    environment = {"PATH": os.environ["PATH"]}  # not what `make test` tells the programs that it starts
    planned = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    assert planned.split() == ["python3", "-m", "federation.delivery.debian_package", "some-bundle"]
