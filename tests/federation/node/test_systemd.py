"""Tests of the systemd units: systemd-analyze accepts them, and they start existing commands."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from federation.cli.main import app
from federation.node import sandbox
from pipeline.site.folder import init_site

UNITS = Path(__file__).resolve().parents[3] / "docs" / "systemd"
USER_UNITS = UNITS.with_name("systemd-user")
SERVICES = tuple(f"fedthorax-{name}@.service" for name in ("node", "ingest", "listen", "clinic", "server"))
APP = "fedthorax-app@.service"
EXPOSED_AT_MOST = 15  # of 100; systemd calls up to 20 "OK"


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not here")
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units with the program paths of this environment. systemd checks that the programs exist."""
    for unit in UNITS.iterdir():
        text = unit.read_text().replace("/opt/fedthorax/bin/", f"{Path(sys.executable).parent}/")
        (tmp_path / unit.name).write_text(text.replace("/usr/bin/setfacl", "/usr/bin/true"))
    return tmp_path


def hardening(service: str) -> str:
    """The hardening settings of a service."""
    found = re.search(r"^NoNewPrivileges=.*^SystemCallErrorNumber=\w+$", (UNITS / service).read_text(), re.M | re.S)
    assert found
    return found[0]


def test_systemd_analyze_verify_accepts_all_units(units: Path) -> None:
    names = sorted(unit.name for unit in units.iterdir())
    assert names == sorted([APP, *SERVICES, "fedthorax-ingest@.timer"])
    checked = analyze("verify", *(units / name for name in names))
    assert "fedthorax" not in checked.stderr
    faulty = units / SERVICES[0]
    faulty.write_text(faulty.read_text().replace("ProtectHome=", "ProtectHouse="))
    assert "ProtectHouse" in analyze("verify", faulty).stderr


@pytest.mark.parametrize("service", [*SERVICES, APP])
def test_service_exposure_is_below_the_threshold(units: Path, service: str) -> None:
    command = ("security", "--offline=true", f"--threshold={EXPOSED_AT_MOST}", "--no-pager", units / service)
    assert analyze(*command).returncode == 0
    bare = units / service
    bare.write_text(bare.read_text().replace(hardening(service), ""))
    assert analyze(*command).returncode == 1


def test_services_have_the_same_hardening() -> None:
    assert len({hardening(service) for service in SERVICES}) == 1


@pytest.mark.parametrize("service", SERVICES)
def test_service_starts_an_existing_command(service: str) -> None:
    found = re.search(r"^ExecStart=/opt/fedthorax/bin/fedthorax (.+) (\S+)$", (UNITS / service).read_text(), re.M)
    assert found
    command = typer.main.get_command(app)
    for word in found[1].split():
        command = command.commands[word]  # type: ignore[attr-defined]
    assert found[2] == "/var/lib/fedthorax/%i"


@pytest.mark.parametrize("service", SERVICES)
def test_service_of_one_user_starts_the_same_command_and_asks_for_no_root(service: str) -> None:
    """systemd refuses to start a user's service with a setting that needs root, such as User= or PrivateDevices=."""
    text = (USER_UNITS / service).read_text()
    command = re.search(r"^ExecStart=(.+)/var/lib(/fedthorax/%i)$", (UNITS / service).read_text(), re.M)
    assert command
    assert f"ExecStart={command[1]}%h{command[2]}\n" in text
    assert re.findall(r"^(?:User|Group|Capab|Private|Protect|StateDir|RemoveIPC)\w*=", text, re.M) == []


@pytest.mark.parametrize("service", SERVICES)
def test_service_of_one_user_is_started_restarted_and_stopped_as_that_of_the_system(service: str) -> None:
    """Without SuccessExitStatus=, for example, a server that was stopped would count as failed."""
    of_process = r"^(?:Type|Restart|RestartSec|KillMode|SuccessExitStatus|Timeout\w+|UMask|LimitCORE|Nice|IO\w+)=.*$"
    of_user, of_system = ((folder / service).read_text() for folder in (USER_UNITS, UNITS))
    assert re.findall(of_process, of_user, re.M) == re.findall(of_process, of_system, re.M)


def test_systemd_analyze_verify_accepts_all_units_of_a_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("HOME", str(tmp_path))
    names = sorted(unit.name for unit in USER_UNITS.iterdir())
    assert names == sorted([*SERVICES, "fedthorax-ingest@.timer"])
    for name in names:
        text = (USER_UNITS / name).read_text().replace("/opt/fedthorax/bin/", f"{Path(sys.executable).parent}/")
        (tmp_path / name).write_text(text)
    assert "fedthorax" not in analyze("--user", "verify", *(tmp_path / name for name in names)).stderr


@pytest.mark.parametrize("service", sorted(set(SERVICES) - {"fedthorax-node@.service"}))
def test_service_of_one_user_filters_system_calls_as_that_of_the_system(service: str) -> None:
    """The node's cannot: its bubblewrap makes namespaces."""
    of_kernel = ("NoNewPrivileges", "Restrict", "LockPersonality", "SystemCall")
    wanted = [line for line in hardening(service).splitlines() if line.startswith(of_kernel)]
    text = (USER_UNITS / service).read_text()
    assert "\n".join(wanted) in text


# --- the service that runs the study's code ---------------------------------------------------------------


def values(key: str) -> list[str]:
    """All values of a key in the app's unit, without the prefix `-` of optional paths."""
    found = re.findall(rf"^{key}=(.*)$", (UNITS / APP).read_text(), re.M)
    return [word.removeprefix("-") for line in found for word in line.split()]


def test_app_service_has_the_same_hardening_and_no_network() -> None:
    # The app's address families are stricter. Its /tmp is in its own root.
    apart = {"RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX", "PrivateTmp=yes"}
    assert set(hardening(SERVICES[0]).splitlines()) - apart <= set(hardening(APP).splitlines())
    assert values("PrivateNetwork") == ["yes"]
    assert values("IPAddressDeny") == ["any"]
    assert values("RestrictAddressFamilies") == ["AF_INET", "AF_UNIX"]
    assert values("User") == ["fedthorax-app"]


def test_app_service_shows_the_same_site_paths_as_bubblewrap(tmp_path: Path) -> None:
    site = init_site(tmp_path / "site", '[site]\nname = "ward"\n[labels]\nfile = "l.csv"\n')
    command = sandbox.confined(site, "true")

    def shown(option: str, folder: Path) -> set[str]:
        paths = [Path(command[i + 1]) for i, word in enumerate(command) if word == option]
        return {str(path.relative_to(folder)) for path in paths if path.is_relative_to(folder)}

    def bound(key: str, folder: str) -> set[str]:
        return {path.removeprefix(folder) for path in values(key) if path.startswith(folder)}

    here = "/var/lib/fedthorax/%i/"
    assert bound("BindReadOnlyPaths", here) == shown("--ro-bind", site.folder) == {"site.toml", "cohort", "sandbox"}
    assert bound("BindPaths", here) == shown("--bind", site.folder) == {"logs/client.log"}
    assert bound("BindReadOnlyPaths", "/etc/") == shown("--ro-bind-try", Path("/etc"))
    assert {path for path in values("BindReadOnlyPaths") if "/etc/" not in path and here not in path} == {
        *("/usr", "/bin", "/sbin", "/lib", "/lib64"),
        "/opt",  # the program's folder
    }
    # Both are in the app's own empty root. Mounts from the host's root would show everything.
    assert [value.split(":")[0] for value in values("TemporaryFileSystem")] == ["/tmp", "/dev/shm"]
    assert values("RootDirectory") == ["/run/fedthorax/%i"]
    assert "RuntimeDirectory=fedthorax/%i" in (UNITS / SERVICES[0]).read_text().splitlines()


def test_app_service_starts_with_the_sandbox_self_check() -> None:
    command = re.search(r"^ExecStart=(.*)$", (UNITS / APP).read_text(), re.M)
    assert command and command[1] == "/opt/fedthorax/bin/python -I -m federation.node.sandbox /var/lib/fedthorax/%i"
