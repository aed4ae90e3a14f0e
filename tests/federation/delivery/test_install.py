"""install.sh on a small bundle: what it refuses, what it installs without a network, and how to undo it."""

import contextlib
import hashlib
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from federation.delivery import reasons
from federation.delivery.checksums import write_sums
from models.reason_tables import reasons_in
from models.signature import new_private_key, public_key
from tests.federation.delivery.conftest import MakeBundle, write_wheel

SCRIPT = Path(reasons.__file__).with_name("install.sh").read_text()
# What could lead pip to a registry or to other versions, if install.sh let it.
HOSTILE = {
    "PIP_INDEX_URL": "https://registry.invalid/simple",
    "PIP_NO_INDEX": "0",
    "PIP_CONSTRAINT": "/nonexistent",
    "PIP_TARGET": "/nonexistent",
    "HTTPS_PROXY": "http://proxy.invalid:3128",
    "PYTHONPATH": "/nonexistent",
    "PYTHONHOME": "/nonexistent",
}


def allowed(*unshare: str) -> bool:
    return subprocess.run(["unshare", *unshare, "true"], capture_output=True, check=False).returncode == 0


without_network = pytest.mark.skipif(not allowed("-rn"), reason="this machine forbids network namespaces")


class Machine:
    """A user's home in which install.sh runs, without a network where the machine allows that."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.share = home / ".local" / "share"
        self.program = self.share / "fedthorax" / "bin" / "fedthorax"
        self.units = home / ".config" / "systemd" / "user"

    def install(
        self, bundle: Path, *arguments: str | Path, before: str = "", unshare: str = "-rn", scope: str = "--user"
    ) -> subprocess.CompletedProcess[str]:
        """Run install.sh in namespaces of its own, after the shell commands `before`."""
        command = ["sh", str(bundle / "install.sh"), scope, "--python", sys.executable, *map(str, arguments)]
        shell = f'{before}\nexec "$@"'
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.home), **HOSTILE}
        return subprocess.run(
            [*(["unshare", unshare] if allowed(unshare) else []), "sh", "-c", shell, "sh", *command],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def version(self) -> str:
        return subprocess.run([self.program], capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    home = tmp_path / "home"
    (home / "fedthorax" / "my-hospital").mkdir(parents=True)
    (home / "fedthorax" / "my-hospital" / "site.toml").write_text("name = 'my-hospital'\n")
    return Machine(home)


def state(machine: Machine) -> list[str]:
    return sorted(str(path.relative_to(machine.home)) for path in machine.home.rglob("*"))


def refused(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1, done.stdout + done.stderr
    return re.findall(r"^(E_\w+): ", done.stderr, re.M)[-1]


# --- what is refused before anything is written ---


def damage_changed(bundle: Path) -> None:
    with (bundle / "requirements.txt").open("a") as file:
        file.write("\n")


def damage_missing(bundle: Path) -> None:
    (bundle / "doc" / "operations.md").unlink()


def damage_extra(bundle: Path) -> None:
    (bundle / "wheelhouse" / "sitecustomize.py").write_text("")


def damage_hidden(bundle: Path) -> None:
    (bundle / "systemd" / "user" / ".fedthorax-node@.service.d").mkdir()
    (bundle / "systemd" / "user" / ".fedthorax-node@.service.d" / "override.conf").write_text("")


def damage_link(bundle: Path) -> None:
    wheel = next((bundle / "wheelhouse").glob("little-*"))
    wheel.rename(bundle.parent / wheel.name)
    wheel.symlink_to(bundle.parent / wheel.name)  # the same content now, and another one later


def damage_sums(bundle: Path) -> None:
    (bundle / "SHA256SUMS").write_text("")


def damage_description(bundle: Path) -> None:
    (bundle / "BUNDLE").unlink()


@pytest.mark.parametrize("damage", [name for name in list(globals()) if name.startswith("damage_")])
def test_a_bundle_with_other_files_than_listed_is_refused(
    damage: str, machine: Machine, make_bundle: MakeBundle
) -> None:
    bundle = make_bundle()
    globals()[damage](bundle)
    before = state(machine)
    assert refused(machine.install(bundle)) == "E_INSTALL_FILES"
    assert state(machine) == before


def test_sums_that_another_key_signed_or_nobody_are_refused(
    machine: Machine, make_bundle: MakeBundle, private_key: Path, tmp_path: Path
) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not here")
    bundle, key = make_bundle(), private_key.with_suffix(".pub")
    assert machine.install(bundle, "--check", "--key", key).returncode == 0
    (tmp_path / "other.key").write_bytes(new_private_key())
    (tmp_path / "other.pub").write_bytes(public_key(tmp_path / "other.key"))
    assert refused(machine.install(bundle, "--key", tmp_path / "other.pub")) == "E_INSTALL_SIGNATURE"
    damage_extra(bundle)
    write_sums(bundle)  # by somebody without the key, who makes the sums fit the files
    assert refused(machine.install(bundle, "--key", key)) == "E_INSTALL_SIGNATURE"


def test_signature_that_cannot_be_checked_is_not_called_wrong(
    machine: Machine, make_bundle: MakeBundle, private_key: Path, tmp_path: Path
) -> None:
    bundle, key = make_bundle(), private_key.with_suffix(".pub")
    assert refused(machine.install(bundle, "--key", tmp_path / "typo.pub")) == "E_INSTALL_UNVERIFIED"
    programs = tmp_path / "bin"  # a minimal system: no openssl
    programs.mkdir()
    for name in ("sh", "sed", "id", "dirname", "cd", "pwd"):
        if found := shutil.which(name):
            (programs / name).symlink_to(found)
    done = machine.install(bundle, "--key", key, before=f"PATH={programs}")
    assert refused(done) == "E_INSTALL_UNVERIFIED"


@pytest.mark.parametrize(
    ("setting", "code"),
    [
        (("pythons", "2.7"), "E_INSTALL_PYTHON"),
        (("glibc", "9.99"), "E_INSTALL_GLIBC"),
        (("mb_installed", "999999999"), "E_INSTALL_DISK"),
    ],
)
def test_a_machine_that_does_not_fit_is_refused(
    setting: tuple[str, str], code: str, machine: Machine, make_bundle: MakeBundle
) -> None:
    bundle = make_bundle()
    text = re.sub(rf"(?m)^{setting[0]}=.*$", "=".join(setting), (bundle / "BUNDLE").read_text())
    (bundle / "BUNDLE").write_text(text)
    write_sums(bundle)
    before = state(machine)
    assert refused(machine.install(bundle)) == code
    assert state(machine) == before


def test_a_prefix_whose_file_system_forbids_programs_is_refused(machine: Machine, make_bundle: MakeBundle) -> None:
    if not allowed("-rm"):
        pytest.skip("this machine forbids mount namespaces")
    mounted = f"mount -t tmpfs -o noexec tmpfs {machine.home}"
    assert refused(machine.install(make_bundle(), before=mounted, unshare="-rm")) == "E_INSTALL_NOEXEC"


def test_system_wide_installation_needs_root(machine: Machine, make_bundle: MakeBundle) -> None:
    if os.geteuid() == 0 and not allowed("-U"):
        pytest.skip("this machine forbids user namespaces")
    assert refused(machine.install(make_bundle(), unshare="-U", scope="--system")) == "E_INSTALL_ROOT"


def test_a_port_in_use_is_a_warning(machine: Machine, make_bundle: MakeBundle) -> None:
    bundle = make_bundle(role="server")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (bundle / "BUNDLE").write_text((bundle / "BUNDLE").read_text().replace("ports=8443", f"ports={port}"))
        write_sums(bundle)
        done = machine.install(bundle, "--check", unshare="-r")  # the test's own network
    assert done.returncode == 0
    assert f"W_INSTALL_PORT: a program of this machine uses port {port}" in done.stderr
    assert "W_INSTALL_PORT" not in machine.install(bundle, "--check", unshare="-r").stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("--unistall",),
        ("node",),
        ("--prefix",),
        ("--prefix", ""),
        ("--key", ""),  # as of a variable that is not set: nothing would be verified
        ("--python", ""),
        ("--prefix", "/tmp/a b"),
        ("--prefix", "/tmp/a|b"),
        ("--prefix", "/tmp/a\nb"),
    ],
)
def test_wrong_usage_has_its_own_exit_code(
    arguments: tuple[str, ...], machine: Machine, make_bundle: MakeBundle
) -> None:
    done = machine.install(make_bundle(), *arguments)
    assert done.returncode == 2
    assert "usage: sh install.sh" in done.stderr


def test_codes_and_texts_are_those_of_the_table() -> None:
    """`fedthorax explain CODE` and docs/refusals.md say what install.sh says."""
    flat = re.sub(r"\\\n\s*", "", SCRIPT)
    said = re.findall(r'refuse (E_\w+)\s+"([^"]+)"\s+"([^"]+)"', flat)
    said += re.findall(r'echo "(W_\w+): ([^"]+)" >&2\s+echo "  ([^"]+)" >&2', flat)
    table = {each.code: each for each in reasons_in(reasons) if each.code[2:].startswith("INSTALL")}
    assert {code for code, _, _ in said} == set(table)
    for code, says, remedy in said:
        filled = re.sub(r"\$\([^)]*\)|\$\{[^}]*\}|\$\w+", "{}", says)
        assert (filled, remedy) == (re.sub(r"\{\w+\}", "{}", table[code].says), table[code].remedy)


# --- what is installed ---


@pytest.mark.slow
@without_network
def test_installs_without_a_network_repeats_and_is_undone(machine: Machine, make_bundle: MakeBundle) -> None:
    bundle, before = make_bundle(), state(machine)
    done = machine.install(bundle, before='[ "$(wc -l </proc/net/route)" -le 1 ] || exit 9')  # no route, only a head
    assert (done.returncode, machine.version()) == (0, "fedthorax 0.1.0"), done.stderr
    assert "loginctl enable-linger" in done.stdout
    units = {unit.name: unit.read_text() for unit in machine.units.iterdir()}
    names = ("ingest@.service", "ingest@.timer", "listen@.service", "node@.service")
    assert sorted(units) == [f"fedthorax-{name}" for name in names]
    assert f"ExecStart={machine.program} node start %h/fedthorax/%i\n" in units["fedthorax-node@.service"]
    installed = state(machine)
    again = machine.install(bundle)
    assert (again.returncode, state(machine)) == (0, installed)
    assert "already installed" in again.stdout
    assert machine.install(bundle, "--uninstall").returncode == 0
    left = [path for path in state(machine) if not path.startswith((".local", ".config"))]
    assert left == before
    assert not machine.share.joinpath("fedthorax").is_symlink()
    assert [path for path in machine.share.iterdir() if "fedthorax" in path.name] == []
    assert list(machine.units.iterdir()) == []
    assert "not installed" in machine.install(bundle, "--uninstall").stdout


def install_quickly(
    machine: Machine, bundle: Path, prefix: Path, *arguments: str | Path, place: Path | None = None, **options: str
) -> subprocess.CompletedProcess[str]:
    """Install to `prefix`, where the program seems to be already, so that pip does not run.

    `place`: where the prefix really is, if it is another place.
    """
    about = dict(line.split("=", 1) for line in (bundle / "BUNDLE").read_text().splitlines())
    sums = (bundle / "SHA256SUMS").read_text()
    (wheel,) = re.findall(r"(?m)^(\w{64})  wheelhouse/fedthorax-", sums)
    program = (place or prefix) / f"fedthorax-{about['version']}"
    program.mkdir(parents=True)
    stamp = f"sums={hashlib.sha256(sums.encode()).hexdigest()}\nwheel={wheel}\n"
    (program / f".installed-{about['role']}").write_text(stamp)
    done = machine.install(bundle, "--prefix", prefix, *arguments, **options)
    assert done.returncode == 0, done.stderr
    assert "already installed" in done.stdout
    return done


def fake(folder: Path, name: str, script: str) -> str:
    """Write a program that replaces another one; return the shell command that puts it first in PATH."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)
    return f"PATH={folder}:$PATH"


def starts(unit: Path) -> list[str]:
    """Return the programs that a unit starts."""
    return re.findall(r"(?m)^ExecStart=(\S+)", unit.read_text())


def test_units_of_another_prefix_are_not_replaced(machine: Machine, make_bundle: MakeBundle, tmp_path: Path) -> None:
    old, new = make_bundle("0.1.0"), make_bundle("0.2.0")
    install_quickly(machine, old, tmp_path / "first")
    before = state(machine)
    for action in ("--check", "--user"):
        done = machine.install(new, "--prefix", tmp_path / "second", action)
        assert refused(done) == "E_INSTALL_UNITS"
        assert f"starts another program, below {tmp_path / 'first'}\n" in done.stderr
    assert state(machine) == before
    assert not (tmp_path / "second").exists()
    assert machine.install(old, "--prefix", tmp_path / "first", "--uninstall").returncode == 0
    install_quickly(machine, new, tmp_path / "second")
    shutil.rmtree(tmp_path / "second")  # by hand: these are the units of the same prefix
    install_quickly(machine, new, tmp_path / "second")


@pytest.mark.parametrize(
    "name", ["fedthorax-node@.service.d", "fedthorax-node@north.service.d", "fedthorax-.service.d"]
)
def test_drop_in_that_starts_another_prefix_is_refused(
    machine: Machine, make_bundle: MakeBundle, tmp_path: Path, name: str
) -> None:
    bundle, drop_in = make_bundle(), machine.units / name / "override.conf"
    drop_in.parent.mkdir(parents=True)
    drop_in.write_text(f"[Service]\nExecStart=\nExecStart={tmp_path / 'first'}/fedthorax/bin/fedthorax node start %i\n")
    before = state(machine)
    done = machine.install(bundle, "--prefix", tmp_path / "second", "--check")
    assert refused(done) == "E_INSTALL_UNITS"
    assert f"the unit {drop_in} starts another program, below {tmp_path / 'first'}\n" in done.stderr
    assert state(machine) == before
    drop_in.write_text("[Service]\nUser=someone\nExecStart=\n")
    assert machine.install(bundle, "--prefix", tmp_path / "second", "--check").returncode == 0


@pytest.mark.parametrize(
    ("command", "other"),
    [
        ("/usr/bin/nice -n 5 {} node start %i", "other"),
        ("/usr/bin/env PATH=/opt/fedthorax/bin:/usr/bin {} node start %i", "other"),
        ("/bin/sh -c 'exec {} node start %i'", "other"),
        ('"{}" node start %i', "with space"),
        ("-{} node start %i", "other"),
        ("/usr/bin/nice \\\n# a remark\n    {} node start %i", "other"),
        ("OWN node check %i\nExecStart={} node start %i", "other"),
    ],
)
def test_program_behind_a_wrapper_is_seen(
    machine: Machine, make_bundle: MakeBundle, tmp_path: Path, command: str, other: str
) -> None:
    """That of another prefix is refused. A unit of this prefix is kept, and removed with its program."""
    bundle, prefix = make_bundle(), tmp_path / "own"
    install_quickly(machine, bundle, prefix)
    own = f"{prefix}/fedthorax/bin/fedthorax"
    node = machine.units / "fedthorax-node@.service"
    text = f"[Service]\nExecStart=/gone/fedthorax/bin/fedthorax\nExecStart=\nExecStart={command}\n"
    text = text.replace("OWN", own)
    node.write_text(text.format(f"{tmp_path}/{other}/fedthorax/bin/fedthorax"))
    done = machine.install(bundle, "--prefix", prefix, "--check")
    assert refused(done) == "E_INSTALL_UNITS"
    assert f"the unit {node} starts another program, below {tmp_path}/{other}\n" in done.stderr
    node.write_text(text.format(own))
    assert machine.install(bundle, "--prefix", prefix, "--check").returncode == 0
    assert machine.install(bundle, "--prefix", prefix, "--uninstall").returncode == 0
    assert not list(machine.units.iterdir())


def test_units_are_found_in_a_folder_with_a_space(machine: Machine, make_bundle: MakeBundle, tmp_path: Path) -> None:
    machine.home = machine.home.rename(tmp_path / "home of a user")
    machine.units = machine.home / ".config" / "systemd" / "user"
    bundle = make_bundle()
    install_quickly(machine, bundle, tmp_path / "first")
    done = machine.install(bundle, "--prefix", tmp_path / "second", "--check")
    assert refused(done) == "E_INSTALL_UNITS"
    assert f"the unit {machine.units}/fedthorax-" in done.stderr
    assert machine.install(bundle, "--prefix", tmp_path / "first", "--uninstall").returncode == 0
    assert not list(machine.units.iterdir())


def test_another_role_may_have_another_prefix(machine: Machine, make_bundle: MakeBundle, tmp_path: Path) -> None:
    install_quickly(machine, make_bundle(role="node"), tmp_path / "first")
    install_quickly(machine, make_bundle(role="clinic"), tmp_path / "second")
    programs = {unit.name: starts(unit) for unit in machine.units.glob("*.service")}
    assert programs["fedthorax-node@.service"] == [str(tmp_path / "first" / "fedthorax" / "bin" / "fedthorax")]
    assert programs["fedthorax-clinic@.service"] == [str(tmp_path / "second" / "fedthorax" / "bin" / "fedthorax")]


def test_uninstalling_spares_units_of_another_prefix(machine: Machine, make_bundle: MakeBundle, tmp_path: Path) -> None:
    """Earlier versions of install.sh replaced them."""
    old, new = make_bundle("0.1.0"), make_bundle("0.2.0")
    install_quickly(machine, old, tmp_path / "first")
    for unit in machine.units.iterdir():
        unit.unlink()
    install_quickly(machine, new, tmp_path / "second")
    before = {unit.name: unit.read_text() for unit in machine.units.iterdir()}
    program = str(tmp_path / "second" / "fedthorax" / "bin" / "fedthorax")
    assert starts(machine.units / "fedthorax-node@.service") == [program]
    running = fake(
        tmp_path / "bin", "systemctl", 'case $* in *list-units*) echo "fedthorax-node@north.service" ;; esac'
    )
    done = machine.install(old, "--prefix", tmp_path / "first", "--uninstall", before=running)  # the other one's runs
    assert done.returncode == 0, done.stderr
    assert {unit.name: unit.read_text() for unit in machine.units.iterdir()} == before
    assert not list((tmp_path / "first").iterdir())
    assert refused(machine.install(new, "--prefix", tmp_path / "second", "--uninstall", before=running)) == (
        "E_INSTALL_RUNNING"
    )
    assert machine.install(new, "--prefix", tmp_path / "second", "--uninstall").returncode == 0
    assert not list(machine.units.iterdir())


def test_timer_is_judged_by_its_service_and_a_unit_by_what_it_starts(
    machine: Machine, make_bundle: MakeBundle, tmp_path: Path
) -> None:
    bundle, prefix = make_bundle(), tmp_path / "own"
    install_quickly(machine, bundle, prefix)
    for name in ("ingest", "listen"):
        unit = machine.units / f"fedthorax-{name}@.service"
        unit.write_text(unit.read_text().replace(f"ExecStart={prefix}/", f"ExecStart={prefix}-2/"))
    node = machine.units / "fedthorax-node@.service"
    node.write_text(f"# It was ExecStart={prefix}-2/fedthorax/bin/fedthorax before.\n{node.read_text()}")
    done = machine.install(bundle, "--prefix", prefix, "--uninstall")
    left = ["ingest@.service", "ingest@.timer", "listen@.service"]
    assert sorted(unit.name for unit in machine.units.iterdir()) == [f"fedthorax-{name}" for name in left]
    assert all(str(machine.units / f"fedthorax-{name}") in done.stdout for name in left)


def test_service_that_starts_ends_or_runs_once_is_running(
    machine: Machine, make_bundle: MakeBundle, tmp_path: Path
) -> None:
    """`activating` is the state of a nightly ingest while it works, and of a node that waits for its restart."""
    bundle, prefix = make_bundle(), tmp_path / "own"
    install_quickly(machine, bundle, prefix)
    before = state(machine)
    for now in ("active", "activating", "deactivating", "reloading"):
        ingest = f'case $* in *list-units*[=,]{now}[,\\ ]*) echo "fedthorax-ingest@north.service" ;; esac'
        running = fake(tmp_path / "bin", "systemctl", ingest)
        assert refused(machine.install(bundle, "--prefix", prefix, "--uninstall", before=running)) == (
            "E_INSTALL_RUNNING"
        )
        assert state(machine) == before


def test_service_that_was_not_restarted_is_told_and_keeps_its_version(
    machine: Machine, make_bundle: MakeBundle, tmp_path: Path
) -> None:
    old, new, prefix = make_bundle("0.1.0"), make_bundle("0.2.0"), tmp_path / "own"
    install_quickly(machine, old, prefix)
    folders = {  # where the Python of each service's process is
        "node@north": prefix / "fedthorax-0.1.0",
        "ingest@north": prefix / "fedthorax-0.1.0",
        "node@south": prefix / "fedthorax-0.2.0",
        "node@other": tmp_path / "other" / "fedthorax-0.1.0",
    }
    (tmp_path / "other" / "fedthorax-0.1.0").mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        script = ""
        for name, folder in folders.items():
            command = [str(folder / "bin" / "python"), "-c", "read line", str(prefix / "fedthorax/bin/fedthorax")]
            process = stack.enter_context(subprocess.Popen(command, executable="/bin/sh", stdin=subprocess.PIPE))
            script += f"*show*fedthorax-{name}.service) echo {process.pid} ;;\n"
        listed = "; ".join(f"echo fedthorax-{name}.service loaded active running text" for name in folders)
        systemctl = fake(tmp_path / "bin", "systemctl", f"case $* in *list-units*) {listed} ;;\n{script}esac")
        done = install_quickly(machine, new, prefix, before=systemctl)
        told = [line for line in done.stdout.splitlines() if "@" in line]
        node = "fedthorax-node@north.service"
        assert told == [
            f"{node} still runs version 0.1.0: systemctl --user restart {node}",
            "fedthorax-ingest@north.service runs version 0.1.0 until it ends",
        ]
        before = state(machine)
        uninstall = machine.install(old, "--prefix", prefix, "--uninstall", before=systemctl)
        assert refused(uninstall) == "E_INSTALL_RUNNING"
        assert "is running: fedthorax-" in uninstall.stderr
        assert state(machine) == before
        assert (prefix / "fedthorax-0.1.0").exists()
    # They are restarted: other processes, of the new version.
    running = fake(tmp_path / "bin", "systemctl", f"case $* in *list-units*) {listed} ;; esac")
    assert machine.install(old, "--prefix", prefix, "--uninstall", before=running).returncode == 0
    assert not (prefix / "fedthorax-0.1.0").exists()


def test_a_link_to_the_prefix_names_the_same_installation(
    machine: Machine, make_bundle: MakeBundle, tmp_path: Path
) -> None:
    bundle = make_bundle()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    install_quickly(machine, bundle, tmp_path / "link", place=tmp_path / "real")
    assert machine.install(bundle, "--prefix", tmp_path / "real", "--uninstall").returncode == 0
    assert not list(machine.units.iterdir())
    assert not list((tmp_path / "real").iterdir())


@pytest.mark.parametrize("prefix", ["own", "./own/", "other/../own", "/own//"])
def test_a_prefix_may_be_written_in_several_ways(
    machine: Machine, make_bundle: MakeBundle, tmp_path: Path, prefix: str
) -> None:
    if prefix.startswith("/"):
        prefix = f"{tmp_path}{prefix}"
    bundle = make_bundle()
    install_quickly(machine, bundle, Path("own"), "--prefix", prefix, place=tmp_path / "own", before=f"cd {tmp_path}")
    program = f"{tmp_path}/own/fedthorax/bin/fedthorax"
    assert starts(machine.units / "fedthorax-node@.service") == [program]
    assert machine.install(bundle, "--prefix", tmp_path / "own", "--uninstall").returncode == 0
    assert not list(machine.units.iterdir())


@pytest.mark.parametrize("kind", ["file", "below a file", "link to nothing", "read-only"])
def test_a_prefix_that_is_no_folder_to_write_to_is_refused(
    machine: Machine, make_bundle: MakeBundle, tmp_path: Path, kind: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link to nothing").symlink_to(tmp_path / "nothing")
    (tmp_path / "link").symlink_to("link to nothing")
    prefix = {"file": "file", "below a file": "file/below", "link to nothing": "link", "read-only": "mounted/a/b"}[kind]
    mounted = ""
    if kind == "read-only":
        if not allowed("-rm"):
            pytest.skip("this machine forbids mount namespaces")
        (tmp_path / "mounted").mkdir()
        mounted = f"mount -t tmpfs -o ro tmpfs {tmp_path / 'mounted'}"
    bundle = make_bundle()
    before = state(machine)
    for action in ("--check", "--user"):
        done = machine.install(bundle, "--prefix", tmp_path / prefix, action, before=mounted, unshare="-rm")
        assert refused(done) == "E_INSTALL_PREFIX"
    assert state(machine) == before


# --- for the whole machine ---


class System:
    """The folders of the machine that --system changes: of the test, and seen only by install.sh."""

    def __init__(self, folder: Path) -> None:
        self.units, self.srv, self.calls = folder / "units", folder / "srv", folder / "calls"
        self.python = folder / "bin" / "python"
        for each in (self.units, self.srv):
            each.mkdir()
        self.before = f"mount --bind {self.units} /etc/systemd/system && mount --bind {self.srv} /srv || exit 9\n"
        fake(folder / "bin", "python", "exit 0")  # that of the tests may be in a home, where services do not see it
        for name in ("useradd", "install"):
            self.before += fake(folder / "bin", name, f'echo "{name} $*" >>{self.calls}') + "\n"
        fake(folder / "bin", "id", '[ "$*" != -u ] || { echo 0; exit 0; }; grep -q useradd ' + str(self.calls))

    def called(self) -> list[str]:
        return self.calls.read_text().splitlines() if self.calls.exists() else []


@pytest.fixture
def system(tmp_path: Path) -> System:
    if not allowed("-rm"):
        pytest.skip("this machine forbids mount namespaces")
    if not Path("/etc/systemd/system").is_dir() or not Path("/srv").is_dir():
        pytest.skip("this machine has no systemd")
    (tmp_path / "system").mkdir()
    return System(tmp_path / "system")


def test_units_of_the_debian_package_are_not_hidden(
    machine: Machine, make_bundle: MakeBundle, system: System, tmp_path: Path
) -> None:
    bundle, packaged = make_bundle(), tmp_path / "packaged"
    shutil.copytree(bundle / "systemd" / "system", packaged)  # they start /opt/fedthorax/bin/fedthorax
    mounted = system.before + f"mount --bind {packaged} /usr/lib/systemd/system || exit 9\n"
    arguments = ("--prefix", "/srv", "--python", system.python)
    done = machine.install(bundle, *arguments, before=mounted, unshare="-rm", scope="--system")
    assert refused(done) == "E_INSTALL_UNITS"
    assert "below /opt\n" in done.stderr
    assert not system.called()
    assert not list(system.units.iterdir())


def test_services_of_the_machine_have_their_user_and_folder_with_any_prefix(
    machine: Machine, make_bundle: MakeBundle, system: System
) -> None:
    bundle, options = make_bundle(), {"before": system.before, "unshare": "-rm", "scope": "--system"}
    python = ("--python", system.python)
    install_quickly(machine, bundle, Path("/srv"), *python, place=system.srv, **options)
    folder = "install -d -o fedthorax -g fedthorax -m 700 /var/lib/fedthorax"
    user = "useradd --system --home-dir /var/lib/fedthorax --shell /usr/sbin/nologin fedthorax"
    assert system.called() == [user, folder]
    assert starts(system.units / "fedthorax-node@.service") == ["/srv/fedthorax/bin/fedthorax"]
    assert "User=fedthorax\n" in (system.units / "fedthorax-node@.service").read_text()
    assert machine.install(bundle, "--prefix", "/srv", *python, **options).returncode == 0
    assert system.called() == [user, folder, folder]  # the user is there now


@pytest.mark.parametrize("prefix", ["/home/fedthorax", "/root", "/tmp/x", "/srv/link/below"])
def test_a_prefix_that_services_of_the_machine_do_not_see_is_refused(
    machine: Machine, make_bundle: MakeBundle, system: System, prefix: str
) -> None:
    (system.srv / "link").symlink_to("/home")
    bundle = make_bundle()
    arguments = ("--prefix", prefix, "--python", system.python)
    done = machine.install(bundle, *arguments, before=system.before, unshare="-rm", scope="--system")
    assert refused(done) == "E_INSTALL_HIDDEN"
    assert not system.called()
    assert not list(system.units.iterdir())


@pytest.mark.slow
def test_an_upgrade_is_undone_by_the_bundle_of_the_version_before(machine: Machine, make_bundle: MakeBundle) -> None:
    old, new = make_bundle("0.1.0"), make_bundle("0.2.0")
    assert machine.install(old).returncode == 0
    done = machine.install(new)
    assert "in use now: 0.2.0 (before: 0.1.0, which stays installed)" in done.stdout
    assert machine.version() == "fedthorax 0.2.0"
    version = machine.share / "fedthorax-0.2.0"  # what a process of a service is known by, although it uses the link
    assert machine.program.read_text().startswith(f"#!{version}/bin/python")
    assert machine.install(old).returncode == 0
    assert machine.version() == "fedthorax 0.1.0"
    assert machine.install(new, "--uninstall").returncode == 0  # not in use: the other one stays
    assert machine.version() == "fedthorax 0.1.0"
    assert len(list(machine.units.iterdir())) == 4


@pytest.mark.slow
def test_a_failed_upgrade_leaves_the_version_in_use(machine: Machine, make_bundle: MakeBundle) -> None:
    assert machine.install(make_bundle("0.1.0")).returncode == 0
    broken = make_bundle("0.2.0", fault="raise SystemExit(3)\n")
    assert refused(machine.install(broken)) == "E_INSTALL_FAILED"
    assert machine.version() == "fedthorax 0.1.0"
    swapped = make_bundle("0.3.0")  # a wheel was exchanged, and SHA256SUMS made to fit
    write_wheel(swapped / "wheelhouse", "little", "0.3.0", {"little.py": "VERSION = '0.3.0'\nimport os\n"})
    write_sums(swapped)
    failed = machine.install(swapped)
    assert refused(failed) == "E_INSTALL_FAILED"
    assert "HASH" in failed.stderr.upper()
    assert machine.version() == "fedthorax 0.1.0"


@pytest.mark.slow
def test_a_version_whose_pytorch_cannot_be_loaded_is_not_put_to_use(machine: Machine, make_bundle: MakeBundle) -> None:
    assert machine.install(make_bundle("0.1.0")).returncode == 0
    newer = make_bundle("0.2.0", torch="raise OSError('version GLIBC_2.38 not found')\n")
    assert refused(machine.install(newer)) == "E_INSTALL_FAILED"
    assert machine.version() == "fedthorax 0.1.0"


@pytest.mark.slow
def test_an_interrupted_installation_is_repeated(machine: Machine, make_bundle: MakeBundle) -> None:
    half = machine.share / "fedthorax-0.1.0" / "bin"
    half.mkdir(parents=True)
    (half / "python").write_text("half a file")
    (half.parent / ".installing").touch()
    done = machine.install(make_bundle())
    assert (done.returncode, machine.version()) == (0, "fedthorax 0.1.0")
    assert "interrupted" in done.stdout


def test_a_folder_that_somebody_made_by_hand_is_kept(machine: Machine, make_bundle: MakeBundle) -> None:
    (machine.share / "fedthorax-0.1.0" / "bin").mkdir(parents=True)
    before = state(machine)
    assert refused(machine.install(make_bundle())) == "E_INSTALL_OTHER"
    assert state(machine) == before


def test_a_program_that_is_no_link_is_refused_before_anything_is_written(
    machine: Machine, make_bundle: MakeBundle
) -> None:
    """As that of the Debian package in /opt/fedthorax: the link to the new version cannot take its place."""
    machine.program.parent.mkdir(parents=True)
    machine.program.touch()
    bundle = make_bundle()
    before = state(machine)
    for action in ("--check", "--user"):
        assert refused(machine.install(bundle, action)) == "E_INSTALL_OTHER"
    assert state(machine) == before


@pytest.mark.slow
def test_two_roles_on_one_machine_are_upgraded_together(machine: Machine, make_bundle: MakeBundle) -> None:
    first = [make_bundle("0.1.0", role) for role in ("node", "clinic")]
    for bundle in first:
        assert machine.install(bundle).returncode == 0
    assert len(list(machine.units.iterdir())) == 5
    waiting = machine.install(make_bundle("0.2.0", "node"))
    assert "install that bundle of version 0.2.0 too" in waiting.stdout
    assert machine.version() == "fedthorax 0.1.0"
    assert machine.install(make_bundle("0.2.0", "clinic")).returncode == 0
    assert machine.version() == "fedthorax 0.2.0"
    assert machine.install(first[1], "--uninstall").returncode == 0
    assert machine.share.joinpath("fedthorax-0.1.0").exists()  # the node's part stays
    assert machine.install(first[0], "--uninstall").returncode == 0
    assert not machine.share.joinpath("fedthorax-0.1.0").exists()


@pytest.mark.slow
def test_another_build_of_the_same_version_is_refused(machine: Machine, make_bundle: MakeBundle) -> None:
    assert machine.install(make_bundle("0.1.0", "node")).returncode == 0
    other = make_bundle("0.1.0", "clinic")
    wheel = next((other / "wheelhouse").glob("fedthorax-*"))
    wheel.write_bytes(wheel.read_bytes() + b"\0")
    write_sums(other)
    assert refused(machine.install(other)) == "E_INSTALL_OTHER"
