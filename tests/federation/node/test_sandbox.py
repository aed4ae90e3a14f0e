"""Tests of the sandbox: its command line, its availability and its self-check. Real sandboxes: tests/e2e."""

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from federation.node import sandbox
from federation.system.reaper import descendants, read_parents
from models.refusal import Refusal
from pipeline.site.folder import Site, init_site

SETTINGS = '[site]\nname = "ward"\n[laboratory]\nfile = "pcr.csv"\n[outcomes]\nfile = "outcomes.csv"\n'


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Site]:
    def make(more: str = "", source: Path | None = None) -> Site:
        text = SETTINGS.replace("[site]\n", f'[site]\nsource = "{source}"\n') if source else SETTINGS
        return init_site(tmp_path / "site", text + more)

    return make


def bound(command: list[str], option: str) -> list[str]:
    """The paths that a bubblewrap option mounts. Each has the same path inside, except those covered by /dev/null."""
    pairs = [(command[i + 1], command[i + 2]) for i, word in enumerate(command) if word == option]
    assert {place for source, place in pairs if source == "/dev/null"} <= {"/proc/keys", "/proc/key-users"}
    pairs = [pair for pair in pairs if pair[0] != "/dev/null"]
    assert all(source == place for source, place in pairs)
    return [place for _, place in pairs]


# --- command line -----------------------------------------------------------------------------------------


def test_sandbox_shows_only_training_inputs_of_the_site_and_a_writable_log(make: Callable[..., Site]) -> None:
    site = make()
    command = sandbox.confined(site, "true")
    inside = [path for path in bound(command, "--ro-bind") if Path(path).is_relative_to(site.folder)]
    assert inside == [str(site.folder / name) for name in ("site.toml", "cohort", "sandbox")]
    assert bound(command, "--bind") == [str(site.folder / "logs" / "client.log")]
    assert command[-2:] == ["--", "true"]


def test_sandbox_shows_only_program_folders_of_the_host(make: Callable[..., Site]) -> None:
    command = sandbox.confined(make(), "true")
    seen = {*bound(command, "--ro-bind"), *bound(command, "--ro-bind-try"), *bound(command, "--dev-bind")}
    assert "/usr" in seen
    assert any(Path(sys.prefix).is_relative_to(path) for path in seen)
    project = Path(sandbox.__file__).resolve().parents[2]
    assert not seen & set(map(str, (*map(Path, ("/", "/etc", "/var", "/run", "/tmp")), project, Path.home())))


def test_all_namespaces_are_unshared(make: Callable[..., Site]) -> None:
    command = sandbox.confined(make(), "true")
    wanted = {"--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent", "--new-session"}
    assert wanted <= set(command)
    assert command[command.index("--cap-drop") + 1] == "ALL"
    assert command[command.index("--remount-ro") + 1] == "/"
    assert not [word for word in command if word.startswith("--share")]


def test_python_prefix_is_shown_as_link_and_as_target(
    make: Callable[..., Site], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/opt/fedthorax is a symlink to a version, and the scripts in it contain the version's path."""
    (tmp_path / "fedthorax-1").mkdir()
    (tmp_path / "fedthorax").symlink_to("fedthorax-1")
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "fedthorax"))
    seen = bound(sandbox.confined(make(), "true"), "--ro-bind")
    assert {str(tmp_path / "fedthorax"), str(tmp_path / "fedthorax-1")} <= set(seen)


def test_environment_is_an_allowlist(make: Callable[..., Site], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://user:password@proxy.example:3128")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    site = make()
    environment = sandbox.environment(site)
    assert not [value for value in environment.values() if "proxy" in value or "secret" in value]
    assert environment["FEDTHORAX_SITE_DIR"] == str(site.folder)
    assert environment["FLWR_HOME"].startswith("/tmp/")
    assert environment["FLWR_TELEMETRY_ENABLED"] == "0"
    assert environment["OMP_NUM_THREADS"] == "3"


def test_without_sandbox_flower_home_is_in_the_site_folder(make: Callable[..., Site]) -> None:
    site = make('[sandbox]\nkind = "none"\naccepted_by = "Dr No"\n')
    assert Path(sandbox.environment(site)["FLWR_HOME"]).is_relative_to(site.folder)


# --- availability -----------------------------------------------------------------------------------------


def test_missing_bubblewrap_is_refused_with_the_remedy_to_install_it(
    make: Callable[..., Site], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Refusal) as caught:
        sandbox.available(make())
    assert caught.value.code == "E_SANDBOX_MISSING"
    assert "Install" in caught.value.remedy


@pytest.mark.slow
@pytest.mark.parametrize("ends", ["exit 1", "exec sleep 60"])
def test_bubblewrap_that_fails_is_refused_with_another_code(
    make: Callable[..., Site], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ends: str
) -> None:
    stand_in = tmp_path / "bin" / "bwrap"
    stand_in.parent.mkdir()
    stand_in.write_text(f"#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\n{ends}\n")
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stand_in.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(sandbox, "TRY_SECONDS", 2.0)
    site = make()
    with pytest.raises(Refusal) as caught:
        sandbox.available(site)
    assert caught.value.code == "E_SANDBOX"
    assert "namespace" in caught.value.private or "did not end" in caught.value.private
    assert sandbox.line(site).status == "fail"


def test_bubblewrap_is_not_tried_when_the_sandbox_is_off(
    make: Callable[..., Site], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    line = sandbox.line(make('[sandbox]\nkind = "none"\naccepted_by = "Dr No"\n'))
    assert line.status == "warn"
    assert "W_SANDBOX_NONE" in line.says
    assert "Dr No" not in str(line.to_json())


def test_app_user_gets_access_only_to_paths_that_its_service_shows(
    make: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("setfacl") is None:
        pytest.skip("setfacl is not here (package acl)")
    monkeypatch.setattr(sandbox, "APP_USER", "nobody")
    site = make('[sandbox]\nkind = "systemd"\n')
    (site.cohort_folder / "tensors").mkdir(parents=True)
    (site.cohort_folder / "tensors" / "old.npy").touch(mode=0o600)
    sandbox.available(site)
    assert sandbox.line(site).status == "ok"
    (site.cohort_folder / "tensors" / "new.npy").touch()
    assert rights(site.folder) == {
        "cohort": "r-x",
        "cohort/tensors": "r-x",
        "cohort/tensors/old.npy": "r--",
        "cohort/tensors/new.npy": "r--",
        "logs/client.log": "rw-",
        "sandbox": "r-x",
        "site.toml": "r--",
    }


def rights(folder: Path) -> dict[str, str]:
    """The effective rights of the user nobody on each path whose access list names this user."""
    command = ["getfacl", "--recursive", "--absolute-names", str(folder)]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {}
    for block in listed.split("\n\n"):
        path = re.search(r"# file: (.*)", block)
        granted = re.search(r"^user:nobody:(...)(?:\s+#effective:(...))?$", block, re.M)
        if path and granted:
            found[str(Path(path[1]).relative_to(folder))] = granted[2] or granted[1]
    return found


@pytest.mark.parametrize("lacks", ["setfacl", "user"])
def test_site_is_refused_when_the_app_user_cannot_get_access(
    make: Callable[..., Site], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lacks: str
) -> None:
    if lacks == "setfacl":
        monkeypatch.setenv("PATH", str(tmp_path))
    elif shutil.which("setfacl") is None:
        pytest.skip("setfacl is not here (package acl)")
    monkeypatch.setattr(sandbox, "APP_USER", "nobody" if lacks == "setfacl" else "nobody-of-this-name")
    with pytest.raises(Refusal) as caught:
        sandbox.available(make('[sandbox]\nkind = "systemd"\n'))
    assert caught.value.code == "E_SANDBOX_ACCESS"


def test_node_without_sandbox_reports_it_and_who_accepted_it(make: Callable[..., Site]) -> None:
    said = sandbox.describe(make('[sandbox]\nkind = "none"\naccepted_by = "Dr No"\n'))
    assert "W_SANDBOX_NONE" in said
    assert "Dr No" in said


def test_second_container_gets_only_the_connection_to_the_node(make: Callable[..., Site], tmp_path: Path) -> None:
    site = make('[sandbox]\nkind = "container"\n')
    assert "in a second container" in sandbox.describe(site)
    assert sandbox.line(site).status == "ok"
    secret = tmp_path / "secret"
    secret.write_text("a word")
    log = tmp_path / "sandbox.log"
    with sandbox.start_superexec(site, runtime_port=1, secret_file=secret, log=log) as relay:
        relay.wait_until((site.folder / "sandbox" / "runtime.sock").is_socket, seconds=60)
        assert len(descendants(relay.pid, read_parents())) == 1  # the relay; no code of a study starts here


def test_program_in_a_second_container_without_walls_starts_nothing(make: Callable[..., Site]) -> None:
    """As if the operator had forgotten every wall: the filter applies, the rest is found and refused."""
    site = make('[sandbox]\nkind = "container"\n')
    sandbox.available(site)
    command = [sys.executable, "-P", "-m", "federation.node.sandbox", str(site.folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 1
    assert "E_SANDBOX_OPEN" in done.stderr
    assert "Seccomp" not in done.stderr and "AF_VSOCK" not in done.stderr


@pytest.fixture
def own_handler() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("own_handler")
def test_program_in_a_second_container_ends_when_the_node_has_a_new_secret(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of the first start")
    (tmp_path / "new").write_text("of the second")
    code = "import os, sys, time; os.replace(*sys.argv[1:]); time.sleep(600)"
    wait = [sys.executable, "-I", "-c", code, str(tmp_path / "new"), str(secret)]
    assert sandbox.run_until_replaced(wait, secret, {}) == 128 + signal.SIGTERM
    assert sandbox.run_until_replaced([sys.executable, "-I", "-c", "raise SystemExit(3)"], secret, {}) == 3


@pytest.mark.usefixtures("own_handler")
def test_program_in_a_second_container_ends_although_its_command_ignores_the_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "STOP_SECONDS", 0.5)
    code = "import os, signal, time; signal.signal(15, signal.SIG_IGN); os.kill(os.getppid(), 15); time.sleep(600)"
    stubborn = [sys.executable, "-I", "-c", code]
    assert sandbox.run_until_replaced(stubborn, tmp_path / "secret", {}) == 128 + signal.SIGKILL


@pytest.mark.usefixtures("own_handler")
def test_signal_that_arrives_before_the_command_starts_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first process of a container ignores a signal that it has no handler for."""
    popen = subprocess.Popen

    def start(*arguments: Any, **keywords: Any) -> subprocess.Popen[bytes]:
        os.kill(os.getpid(), signal.SIGTERM)
        return popen(*arguments, **keywords)

    monkeypatch.setattr(subprocess, "Popen", start)
    sleeping = [sys.executable, "-I", "-c", "import time; time.sleep(600)"]
    assert sandbox.run_until_replaced(sleeping, tmp_path / "secret", {}) == 128 + signal.SIGTERM


# --- self-check inside the sandbox ------------------------------------------------------------------------


def test_process_outside_a_sandbox_is_detected(make: Callable[..., Site]) -> None:
    with pytest.raises(Refusal) as caught:
        sandbox.check_walls(make())
    assert caught.value.code == "E_SANDBOX_OPEN"
    assert "keys" in caught.value.private


def holes(site: Site) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for what, where in sandbox.reachable(site):
        found.setdefault(what, []).append(where)
    return found


def test_readable_hospital_files_are_reported_by_path(make: Callable[..., Site], tmp_path: Path) -> None:
    source = tmp_path / "exports"
    source.mkdir()
    (source / "pcr.csv").touch()
    (source / "ct").mkdir()
    site = make(source=source)
    (site.folder / "ledger").mkdir()
    assert {*holes(site)["files that are the hospital's alone"]} == {
        *(str(site.folder / name) for name in ("keys", "ledger")),
        *(str(source / name) for name in ("ct", "pcr.csv")),
    }


ROUTES = "Iface\tDestination\tGateway\tFlags\nens3\t00000000\t010200C0\t0003\nlo\t0000007F\t0\t0001\n"
ROUTES_6 = (
    "fe80 40 00 0 00 0 00000100 00000001 00000000 00000001     ens4\n00 00 00 0 0 0 ffffffff 1 0 00200200       lo\n"
)


@pytest.mark.parametrize(
    ("four", "six", "devices"),
    [
        (ROUTES, ROUTES_6, {"ens3", "ens4"}),
        (ROUTES, None, {"ens3"}),
        (ROUTES.splitlines()[0], ROUTES_6.splitlines()[1], set()),
    ],
)
def test_device_with_a_route_is_reported_as_network(
    make: Callable[..., Site],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    four: str,
    six: str | None,
    devices: set[str],
) -> None:
    (tmp_path / "route").write_text(four)
    if six:
        (tmp_path / "ipv6_route").write_text(six)
    monkeypatch.setattr(sandbox, "NETWORK", tmp_path)
    assert set(holes(make()).get("a network", [])) == devices


def test_check_fails_when_route_tables_are_missing(
    make: Callable[..., Site], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sandbox, "NETWORK", tmp_path)
    with pytest.raises(FileNotFoundError):
        sandbox.check_walls(make())


def test_entry_point_refuses_to_start_outside_a_sandbox(make: Callable[..., Site]) -> None:
    site = make()
    done = subprocess.run(
        [sys.executable, "-I", "-m", "federation.node.sandbox", site.folder],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1
    assert "E_SANDBOX_OPEN" in done.stderr
    assert "Traceback" not in done.stderr


# --- files that the sandbox receives ----------------------------------------------------------------------


def test_secret_replaces_a_symlink_and_does_not_follow_it(
    make: Callable[..., Site], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    site = make('[sandbox]\nkind = "none"\naccepted_by = "Dr No"\n')
    secret, place, key = tmp_path / "given", site.folder / "sandbox" / "secret", tmp_path / "key"
    secret.write_bytes(b"of this start")
    key.write_bytes(b"must stay")
    place.parent.mkdir()
    place.symlink_to(key)
    monkeypatch.setattr(sandbox, "Process", lambda *_, **__: None)  # no process is started
    sandbox.start_superexec(site, runtime_port=1, secret_file=secret, log=tmp_path / "log")
    assert place.read_bytes() == b"of this start"
    assert key.read_bytes() == b"must stay"
    assert not stat.S_IMODE(place.stat().st_mode) & 0o027


def test_sandbox_folder_and_log_are_private_to_their_owner(make: Callable[..., Site]) -> None:
    site = make('[sandbox]\nkind = "none"\naccepted_by = "Dr No"\n')
    sandbox.available(site)
    assert stat.S_IMODE((site.folder / "sandbox").stat().st_mode) == 0o700
    assert stat.S_IMODE((site.logs / "client.log").stat().st_mode) == 0o600
