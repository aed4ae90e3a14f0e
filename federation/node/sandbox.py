"""The sandbox in which a study's code runs. It can reach the runtime API of the site's SuperNode and nothing else.

Flower's SuperExec runs in the sandbox and starts a ClientApp for each task (as a fork: see clientapp_forks.py). These
processes can access only

* network: their own loopback, with one port that a relay connects to the SuperNode (see socket_relay.py);
* site: site.toml, cohort/ and sandbox/ for reading, logs/client.log for writing;
* machine: programs and libraries for reading, an empty /tmp, their own processes, the GPU that [compute] names;
* kernel: the system calls that training needs (see confinement.py), and no keyring.

Everything else is absent: keys, ledger, approvals, the hospital's files. [sandbox] kind in site.toml selects who builds
the sandbox: bubblewrap, started by the node; systemd, with fedthorax-app@.service beside the node; or the operator of
containers, with a second container that has no network (docs/containers.md). In all cases the first program inside
checks what it can reach (`check_walls`), and starts nothing if that is too much.

    python -I -m federation.node.sandbox SITE_DIR     the program inside
"""

import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from federation.approval.packages import PackageApprovals
from federation.node import confinement, gpu_access, reasons
from federation.system.process import LOOPBACK, QUIET, Process, flower_command
from models.gpu_devices import may_have_gpu
from models.processor_report import report
from models.reasons import COMPUTE_DEVICE
from models.refusal import Reason, Refusal
from pipeline.site.folder import Site
from pipeline.system.check_line import Line, refused

RELAY = Path(__file__).with_name("socket_relay.py")
CONFINEMENT = Path(confinement.__file__)
# A port on the sandbox's own loopback, which no other process can use; Flower's default for a SuperNode.
INNER_PORT = 9094
PACKAGES = ("models", "pipeline", "federation", "configs")
# Library search paths and the time zone; no users, hosts or name servers.
ETC = ("/etc/alternatives", "/etc/ld.so.cache", "/etc/localtime")
# PyTorch and OpenMP read the number of cores here.
CORES = ("/sys/devices/system/cpu", "/sys/devices/system/node")
# The parts of the site's folder that a study's code must never see.
HIDDEN = ("keys", "ledger", "privacy", "apps", "networks", "gateway", "pacs", "pull", "results", "fhir", "omop")
TMP, TMP_BYTES = "/tmp", 2**30  # noqa: S108 - the sandbox's own
NETWORK = Path("/proc/net")
TRY_SECONDS = 20.0
LOOK_SECONDS = 1.0
STOP_SECONDS = 10.0  # in a second container; SuperExec allows itself 5 s to end
APP_USER = "fedthorax-app"  # files of the service
# The only inherited variables; others may contain proxies and passwords.
PASSED_ON = ("OMP_NUM_THREADS", "TZ")


def _folder(site: Site) -> Path:
    return site.folder / "sandbox"


def _socket(site: Site) -> Path:
    return _folder(site) / "runtime.sock"


def _secret(site: Site) -> Path:
    return _folder(site) / "secret"


def _app_log(site: Site) -> Path:
    return site.logs / "client.log"


# --- outside: what the node runs --------------------------------------------------------------------------


def available(site: Site) -> None:
    """Prepare the files that the sandbox shows, and check that the sandbox of site.toml can be built here.

    Raises Refusal E_SANDBOX_MISSING if bubblewrap is not installed, E_SANDBOX if this system does not allow its
    sandbox, E_SANDBOX_ACCESS if systemd's user cannot get access to its files. It is not checked whether systemd's
    service runs.
    """
    _folder(site).mkdir(mode=0o700, exist_ok=True)
    site.cohort_folder.mkdir(exist_ok=True)
    site.logs.mkdir(exist_ok=True)
    _app_log(site).touch(mode=0o600)
    if site.settings.sandbox.kind == "bwrap":
        if shutil.which("bwrap") is None:
            raise Refusal(reasons.SANDBOX_MISSING)
        _try(reasons.SANDBOX, confined(site, sys.executable, "-I", "-S", "-c", ""))  # an image has no other program
    elif site.settings.sandbox.kind == "systemd":
        for arguments in _access(site):
            _try(reasons.SANDBOX_ACCESS, ["setfacl", *arguments])


def _access(site: Site) -> Iterator[list[str]]:
    """Give systemd's user access to the files that its service shows (setfacl(1)), and to nothing else of the site.

    `d:` entries apply to future files, such as tensors or a new socket.
    """
    user = f"u:{APP_USER}"
    yield ["-R", "-P", "-m", f"{user}:rX,d:{user}:rX", str(site.cohort_folder)]
    yield ["-m", f"{user}:rx,d:{user}:rw", str(_folder(site))]
    yield ["-m", f"{user}:r", str(site.folder / "site.toml")]
    yield ["-m", f"{user}:rw", str(_app_log(site))]


def _try(reason: Reason, command: list[str]) -> None:
    """Run a command. Raises Refusal with the given reason if it fails or hangs."""
    try:
        subprocess.run(command, capture_output=True, timeout=TRY_SECONDS, check=True, stdin=subprocess.DEVNULL)
    except subprocess.CalledProcessError as error:
        raise Refusal(reason, private=error.stderr.decode(errors="replace").strip()) from error
    except subprocess.TimeoutExpired as error:
        raise Refusal(reason, private=f"{command[0]} did not end within {TRY_SECONDS:.0f} s") from error
    except OSError as error:
        raise Refusal(reason, private=str(error)) from error


def describe(site: Site) -> str:
    """Describe the sandbox, for the node's start."""
    sandbox = site.settings.sandbox
    if sandbox.kind == "none":
        warning = reasons.SANDBOX_NONE
        return f"{warning.code}: {warning.says}. {warning.remedy} Accepted by: {sandbox.accepted_by}"
    if sandbox.kind == "systemd":
        return f"the study's code runs without network, as the service fedthorax-app@{site.folder.name}"
    if sandbox.kind == "container":
        return "the study's code runs without network, in a second container"
    return "the study's code runs without network, in a sandbox (bubblewrap)"


def line(site: Site) -> Line:
    """Return the line about the sandbox for `fedthorax node check`."""
    area, name, sandbox = "environment", "sandbox", site.settings.sandbox
    try:
        available(site)
    except Refusal as refusal:
        return refused(area, name, refusal)
    if sandbox.kind == "none":
        warning = reasons.SANDBOX_NONE
        return Line(area, name, "warn", f"{warning.code}: {warning.says}", warning.remedy, private=sandbox.accepted_by)
    return Line(area, name, "ok", f"a study's code can be confined here ({sandbox.kind})")


def gpu_line(site: Site) -> Line | None:
    """Return the line about a GPU behind bubblewrap's sandbox, where the study's code uses it; None without a GPU."""
    area, name, settings = "environment", "GPU in the sandbox", site.settings
    if settings.sandbox.kind != "bwrap" or not may_have_gpu(settings.compute.device):
        return None
    try:
        available(site)
    except Refusal:
        return None  # as the line about the sandbox says
    found = report(settings.compute, inside=confined(site), environment=environment(site))
    if found.device.startswith("cuda"):
        return Line(area, name, "ok", "a study's code can use it")
    private = found.problem or found.says
    return Line(area, name, "warn", "a study's code cannot use it there", COMPUTE_DEVICE.remedy, private=private)


def start_superexec(site: Site, *, runtime_port: int, secret_file: Path, log: Path) -> Process:
    """Start the SuperExec that takes tasks from the SuperNode at `runtime_port` on loopback and runs the study's code.

    `secret_file` is the SuperNode's --superexec-auth-secret-file. Only this process may write to `log`, because the
    code inside writes there and could read everything else in it. With kind = "systemd" or "container" only the
    connection to the SuperNode is opened; the unit or the second container does the rest.

    Raises Refusal: those of `available`, E_COHORT_FILE, E_APPROVALS. Raises OSError if the site's folder cannot be
    written.
    """
    from pipeline.cohort.store import Cohort

    available(site)
    with Cohort(site):  # the code inside cannot write, so it cannot complete a killed ingest
        pass
    _hand_over(secret_file, _secret(site))
    PackageApprovals(site).hand_over()
    way = [sys.executable, "-I", str(RELAY), f"unix:{_socket(site)}", f"tcp:{runtime_port}"]
    command = {
        "bwrap": [*way, *confined(site, sys.executable, "-I", "-m", "federation.node.sandbox", str(site.folder))],
        "systemd": way,
        "container": way,
        "none": _superexec(site, runtime_port),
    }
    return Process("the sandbox", command[site.settings.sandbox.kind], log=log, environment=environment(site))


def _hand_over(secret: Path, to: Path) -> None:
    """Copy a file to where the sandbox sees it, as a new file that replaces an older one.

    Its group bits make the folder's access control list effective. The folder is closed to users outside the list.
    """
    content = secret.read_bytes()
    to.unlink(missing_ok=True)
    with os.fdopen(os.open(to, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o640), "wb") as file:
        file.write(content)


def _superexec(site: Site, port: int) -> list[str]:
    return [
        *(sys.executable, "-I", "-m", "federation.node.clientapp_forks"),
        flower_command("flower-superexec"),
        f"--runtime-api-address={LOOPBACK}:{port}",
        "--insecure",
        f"--superexec-auth-secret-file={_secret(site)}",
    ]


def environment(site: Site) -> dict[str, str]:
    """Return all environment variables of a study's code. Flower's files are deleted together with the sandbox."""
    is_open = site.settings.sandbox.kind == "none"
    passed_on = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    return {
        **passed_on,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), "/usr/local/bin", "/usr/bin", "/bin"]),
        "LANG": "C.UTF-8",
        "HOME": TMP,
        "LOGNAME": "fedthorax",  # PyTorch asks for the user name, and the sandbox has no list of users
        "FEDTHORAX_SITE_DIR": str(site.folder),
        "FLWR_HOME": str(_folder(site) / "flower_home") if is_open else f"{TMP}/flower_home",
        **QUIET,
        "PYTHONUNBUFFERED": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.5",  # as in processes.flower_environment
    }


# --- bubblewrap's sandbox ---------------------------------------------------------------------------------


def confined(site: Site, *command: str, shows_site: bool = True) -> list[str]:
    """Return the command line that runs a command in bubblewrap's sandbox (0.8 or later, see bwrap(1)).

    `shows_site`: False for code that needs no cohort; it then sees nothing of the site, and no GPU.

    Later mounts cover earlier ones: a site or a Python below /tmp is visible, the rest of /tmp is not. The kernel's
    settings are covered, because root may write them without any capability and some start a program outside
    (core_pattern). The lists of keys are covered, because they name the keys of the user who started the node.
    """
    seen = [*_programs(), *([site.folder / "site.toml", site.cohort_folder, _folder(site)] if shows_site else [])]
    return [
        *(sys.executable, "-I", str(CONFINEMENT), shutil.which("bwrap") or "bwrap"),
        *("--unshare-all", "--unshare-user", "--disable-userns", "--hostname", "sandbox"),
        *("--die-with-parent", "--new-session", "--cap-drop", "ALL"),
        *_system(),
        *("--proc", "/proc", *_each("--ro-bind", [Path("/proc/sys")]), "--dev", "/dev"),
        *(word for path in confinement.KEY_LISTS if path.exists() for word in ("--ro-bind", "/dev/null", str(path))),
        *("--size", str(TMP_BYTES), "--tmpfs", TMP),
        *(gpu_access.gpu_binds(site.settings.compute.device) if shows_site else ()),
        *_each("--ro-bind", seen),
        *_each("--bind", [_app_log(site)] if shows_site else []),
        *("--remount-ro", "/", "--chdir", "/", "--", *command),
    ]


def _each(option: str, paths: list[Path]) -> list[str]:
    """Bind each path under its own name."""
    return [argument for path in paths for argument in (option, str(path), str(path))]


def _system() -> list[str]:
    """Bind the system's programs and libraries. On most systems /bin and similar folders are links into /usr."""
    arguments = _each("--ro-bind", [Path("/usr")])
    for path in map(Path, ("/bin", "/sbin", "/lib", "/lib32", "/lib64")):
        if path.is_symlink():
            arguments += ["--symlink", str(path.readlink()), str(path)]
        elif path.is_dir():
            arguments += _each("--ro-bind", [path])
    return arguments + _each("--ro-bind-try", [Path(name) for name in (*ETC, *CORES)])


def _programs() -> list[Path]:
    """Return this Python, its installed packages and our own packages, under every path that is used for them."""
    folders = [Path(sys.prefix), Path(sys.base_prefix)]
    for package in PACKAGES:
        spec = find_spec(package)
        assert spec is not None and spec.submodule_search_locations
        folders.append(Path(spec.submodule_search_locations[0]))
    names = dict.fromkeys(name for folder in folders for name in (folder, folder.resolve()))
    return [name for name in names if not any(name.is_relative_to(other) for other in {*names, Path("/usr")} - {name})]


# --- inside -----------------------------------------------------------------------------------------------


def check_walls(site: Site) -> None:
    """Check the sandbox from inside. Raises Refusal E_SANDBOX_OPEN if this process can reach more than it should."""
    if holes := list(reachable(site)):
        raise Refusal(reasons.SANDBOX_OPEN, what=holes[0][0], private=", ".join(place for _, place in holes))


def reachable(site: Site) -> Iterator[tuple[str, str]]:
    """Yield what this process can reach and should not: a public description, and details."""
    yield from (("a network", device) for device in _devices_with_a_route())
    settings = site.settings
    sources = [table.file for table in (settings.outcomes, settings.labels) if table and table.file]
    sources += settings.laboratory.sources if settings.laboratory else []
    hidden = [*(site.folder / name for name in HIDDEN), site.ct_folder, *sources]
    yield from (("files that are the hospital's alone", str(path)) for path in hidden if os.access(path, os.R_OK))
    kept = [site.folder / "site.toml", site.cohort_folder, _folder(site), RELAY]
    yield from (("files that it must not change", str(path)) for path in kept if os.access(path, os.W_OK))
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    if int(status["CapEff"], 16) or status["NoNewPrivs"].strip() != "1":
        yield "privileges", "/proc/self/status"
    yield from gpu_access.reachable(settings.compute.device)
    yield from confinement.reachable()


def _confine() -> None:
    try:
        confinement.confine()
    except OSError as error:
        raise Refusal(reasons.SANDBOX, private=str(error)) from error


def _devices_with_a_route() -> set[str]:
    """Return the network devices other than loopback to which the kernel can send packets (proc(5), route(8))."""
    _, *lines = (NETWORK / "route").read_text().splitlines()
    devices = {line.split()[0] for line in lines}
    six = NETWORK / "ipv6_route"
    if six.exists():
        devices |= {line.split()[-1] for line in six.read_text().splitlines()}
    return devices - {"lo"}


def main(folder: Path) -> int:
    """Check the sandbox, then execute the relay, which starts SuperExec."""
    # The first process of a container ignores a signal that it has no handler for.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        site = Site.open(folder)
        if site.settings.sandbox.kind == "container":
            _confine()
        check_walls(site)
    except Refusal as refusal:
        sys.stderr.write(f"{refusal} ({refusal.private})\n{refusal.remedy}\n")
        return 1
    way = [sys.executable, "-I", str(RELAY), f"tcp:{INNER_PORT}", f"unix:{_socket(site)}"]
    command = [*way, *_superexec(site, INNER_PORT)]
    if site.settings.sandbox.kind == "container":
        return run_until_replaced(command, _secret(site), environment(site))
    os.execve(sys.executable, command, environment(site))  # noqa: S606


def run_until_replaced(command: list[str], file: Path, environment: dict[str, str]) -> int:
    """Run a command until it ends, SIGTERM arrives or a file is replaced; return its exit code.

    It is asked to end, and killed STOP_SECONDS later.

    The node writes a new secret at each start, and Flower's SuperExec reads it once. systemd restarts the sandbox with
    the node. A second container ends here instead, and its restart policy starts it again.
    """

    def stamp() -> tuple[int, int] | None:
        with suppress(OSError):
            about = file.stat()
            return about.st_ino, about.st_mtime_ns
        return None

    before, is_asked, kill_at = stamp(), False, math.inf

    def ask(*_: object) -> None:
        nonlocal is_asked
        is_asked = True

    signal.signal(signal.SIGTERM, ask)
    process = subprocess.Popen(command, env=environment)
    while process.poll() is None:
        if kill_at == math.inf and (is_asked or stamp() != before):
            process.terminate()
            kill_at = time.monotonic() + STOP_SECONDS
        if time.monotonic() > kill_at:
            process.kill()  # what it leaves behind ends with this process, the first one of the container
        time.sleep(LOOK_SECONDS)
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
