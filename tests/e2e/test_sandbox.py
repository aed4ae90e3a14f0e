"""The sandbox blocks every tested way out, and a real task runs inside it.

A probe program tries all ways out inside the sandbox. The same program outside shows that each way is otherwise open.
Then a real task runs through a real SuperLink, SuperNode and SuperExec.
"""

import ctypes
import json
import os
import platform
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from federation.node import sandbox
from federation.system.process import LOOPBACK, Process, flower_command, flower_environment, free_port, port_is_taken
from federation.system.reaper import descendants, read_parents
from models.refusal import Refusal
from pipeline.site.folder import Site

pytestmark = pytest.mark.e2e

PROBE = Path(__file__).with_name("sandbox_probe.py")
SECRET = b"a secret of SuperExec and SuperNode"


class Answer(socketserver.BaseRequestHandler):
    """Sends an HTTP response to each client, over TCP, UDP or a Unix socket."""

    def handle(self) -> None:
        answer = b"HTTP/1.0 200 OK\r\nContent-Length: 4\r\n\r\nopen"
        if isinstance(self.request, tuple):
            self.request[1].sendto(answer, self.client_address)
        else:
            self.request.recv(1024)
            self.request.sendall(answer)


@dataclass
class Outside:
    """Resources outside the sandbox that the probe tries to reach."""

    folder: Path
    site: Site
    port: int = 0  # TCP, on all addresses of this machine
    udp_port: int = 0
    runtime_port: int = 0
    abstract: str = ""
    unix: str = ""
    sleeper: int = 0
    key: str = ""  # name of a key in the session keyring of these tests
    stack: ExitStack = field(default_factory=ExitStack)

    def serve(self, server: socketserver.BaseServer) -> Any:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.stack.callback(server.server_close)
        self.stack.callback(server.shutdown)
        return server.server_address

    def targets(self) -> dict[str, Any]:
        keys = self.site.folder / "keys"
        return {
            "port": self.port,
            "udp_port": self.udp_port,
            "addresses": addresses(),
            "abstract": self.abstract,
            "unix": self.unix,
            "sleeper": self.sleeper,
            "key": self.key,
            "read": {
                "pseudonym key": str(keys / "pseudonym.key"),
                "node key": str(keys / "node"),
                "ledger": str(self.site.folder / "ledger" / "ledger.jsonl"),
                "node log": str(self.site.logs / "node.log"),
                "source": str(self.folder / "exports" / "pcr.csv"),
                "users": "/etc/passwd",
                "name servers": "/etc/resolv.conf",
                "project": str(Path(__file__).resolve().parents[2] / "pyproject.toml"),
            },
            "write": {
                "cohort": str(self.site.cohort_folder / "planted"),
                "tensors": str(self.site.cohort_folder / "tensors" / "planted"),
                "site.toml": str(self.site.folder / "site.toml"),
                "sandbox": str(self.site.folder / "sandbox" / "planted"),
                "site": str(self.site.folder / "planted"),
                "program": str(Path(sys.prefix) / "planted"),
                "drop": str(self.folder / "planted"),
                "tmp": f"/tmp/planted-{os.getpid()}",
                "shm": f"/dev/shm/planted-{os.getpid()}",
            },
        }


def addresses() -> list[str]:
    """Return the addresses of this machine other than loopback. May be empty."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        try:
            asker.connect(("192.0.2.1", 9))  # sends no packet
        except OSError:
            return []
        return [asker.getsockname()[0]]


@pytest.fixture(scope="module")
def outside(
    tmp_path_factory: pytest.TempPathFactory, small_hospital: Path, make_site: Callable[[Path, Path], Site]
) -> Iterator[Outside]:
    folder = tmp_path_factory.mktemp("outside")
    site = make_site(folder / "site", small_hospital)
    (folder / "exports").mkdir()
    for path in (
        *(site.folder / "keys" / "node", site.folder / "ledger" / "ledger.jsonl", site.logs / "node.log"),
        folder / "exports" / "pcr.csv",
        site.cohort_folder / "tensors" / "lungs.npy",
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("not for a study's code")
    try:
        sandbox.available(site)
    except Refusal as refusal:
        pytest.skip(f"{refusal}: {refusal.private}")
    there = Outside(folder, site)
    with there.stack:
        there.port = there.serve(socketserver.ThreadingTCPServer(("0.0.0.0", 0), Answer))[1]
        there.runtime_port = there.serve(socketserver.ThreadingTCPServer(("127.0.0.1", 0), Answer))[1]
        there.udp_port = there.serve(socketserver.ThreadingUDPServer(("0.0.0.0", 0), Answer))[1]
        there.unix = there.serve(socketserver.ThreadingUnixStreamServer(str(folder / "s"), Answer))
        there.abstract = f"fedthorax-test-{os.getpid()}"
        there.serve(socketserver.ThreadingUnixStreamServer(f"\0{there.abstract}", Answer))
        sleeper = subprocess.Popen(["sleep", "600"])
        there.stack.callback(sleeper.wait)
        there.stack.callback(sleeper.kill)
        there.sleeper = sleeper.pid
        there.key = f"fedthorax-test-{os.getpid()}"
        add_key(there.key, b"secret of another")
        yield there


def add_key(name: str, secret: bytes) -> None:
    """Add a key to the session keyring of this process. Child processes inherit it; other sessions do not see it."""
    add, keyctl = {"x86_64": (248, 250), "aarch64": (217, 219)}[platform.machine()]
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall(ctypes.c_long(keyctl), ctypes.c_long(1), None)  # KEYCTL_JOIN_SESSION_KEYRING
    libc.syscall(ctypes.c_long(add), b"user", name.encode(), secret, ctypes.c_long(len(secret)), ctypes.c_long(-3))


def probed(command: list[str], environment: dict[str, str]) -> dict[str, Any]:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@dataclass
class Probes:
    within: dict[str, Any]
    without: dict[str, Any]
    dropped: set[str]  # names of the files that the inner probe wrote outside


@pytest.fixture(scope="module")
def probes(outside: Outside) -> Probes:
    """Results of the same program inside and outside the sandbox."""
    before = {name: fingerprint(path) for name, path in outside.targets()["write"].items()}
    program = [sys.executable, "-I", "-c", PROBE.read_text(), json.dumps(outside.targets())]
    proxied = {**os.environ, "HTTPS_PROXY": "http://user:password@proxy.example:3128"}
    relay = [sys.executable, "-I", str(sandbox.RELAY)]
    socket_path = outside.site.folder / "sandbox" / "runtime.sock"
    inner = [*relay, f"tcp:{sandbox.INNER_PORT}", f"unix:{socket_path}", *program]
    outer = [*relay, f"unix:{socket_path}", f"tcp:{outside.runtime_port}", *sandbox.confined(outside.site, *inner)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HTTPS_PROXY", proxied["HTTPS_PROXY"])
        within = probed(outer, sandbox.environment(outside.site))
    dropped = {n for n, path in outside.targets()["write"].items() if fingerprint(path) != before[n]}
    without = probed(program, proxied)
    for path in outside.targets()["write"].values():
        if Path(path).name.startswith("planted"):
            Path(path).unlink(missing_ok=True)
    return Probes(within, without, dropped)


def fingerprint(path: str) -> tuple[int, int] | None:
    return (Path(path).stat().st_mtime_ns, Path(path).stat().st_size) if Path(path).exists() else None


WAYS = [
    *("tcp loopback", "tcp address", "udp loopback", "udp address", "dns query", "curl", "raw socket"),
    *("abstract socket", "unix socket", "foreign processes", "signal", "ptrace", "memory of another"),
    *("proxy variable", "name of the machine", "new namespace", "kernel setting"),
    *("read key", "names of keys", "add key", "request key", "bpf", "perf", "io_uring", "userfaultfd"),
    *("memory of a child", "traced child", "compared processes", "personality", "cloned namespace"),
    *("socket AF_VSOCK", "socket AF_NETLINK", "socket AF_INET6", "socket AF_ALG"),
    *("read pseudonym key", "read node key", "read ledger", "read node log", "read source", "read users"),
    *("read name servers", "read project"),
    *("write cohort", "write tensors", "write site.toml", "write sandbox", "write program"),
]

# Inside, /tmp and /dev/shm, and the test folders below /tmp, are private tmpfs mounts of the sandbox.
MEMORY = ("write tmp", "write shm", "write site", "write drop")
# Ways that many systems allow only to root, or that a kernel or container does not support.
PRIVILEGED = {"raw socket", "ptrace", "new namespace", "kernel setting", "cloned namespace", "traced child"}
PRIVILEGED |= {"bpf", "perf", "io_uring", "userfaultfd", "compared processes", "memory of a child"}
PRIVILEGED |= {"socket AF_VSOCK", "socket AF_ALG", "socket AF_INET6"}
PRIVILEGED |= {"read key", "names of keys", "add key", "request key"}


@pytest.mark.parametrize("way", WAYS)
def test_way_out_is_open_outside_and_closed_inside(probes: Probes, way: str) -> None:
    if probes.without[way] == "not here" or (way in PRIVILEGED and probes.without[way] != "open"):
        pytest.skip(f"{way}: {probes.without[way]} to this user of this machine, without a sandbox too")
    assert probes.without[way] == "open"
    assert probes.within[way].startswith("closed"), probes.within[way]


def test_every_result_of_the_probe_is_checked(probes: Probes) -> None:
    judged = {*WAYS, *MEMORY, "runtime", "devices", "site listing"}
    assert probes.within.keys() == judged


def test_files_written_inside_do_not_appear_outside(probes: Probes) -> None:
    assert probes.within["write tmp"] == "open"
    assert [probes.without[place] for place in MEMORY] == ["open"] * len(MEMORY)
    assert probes.dropped == set()


def test_runtime_api_is_reachable_through_the_relay(probes: Probes) -> None:
    assert probes.within["runtime"] == "open"
    assert probes.without["runtime"].startswith("closed")  # that port exists only in the sandbox


def test_only_required_files_of_the_site_are_visible_inside(probes: Probes) -> None:
    assert probes.within["site listing"] == ["cohort", "logs", "sandbox", "site.toml"]
    assert {"keys", "ledger"} < {*probes.without["site listing"]}
    assert probes.within["devices"] == ["lo"]


# --- self-check at start --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hole", "found"),
    [
        ([], ""),
        (["--share-net"], "a network"),
        (["--cap-add", "CAP_NET_ADMIN"], "privileges"),
        (["--ro-bind", "keys", "keys"], "files that are the hospital's alone"),
        (["--ro-bind", "ledger", "ledger"], "files that are the hospital's alone"),
        (["--bind", "cohort", "cohort"], "files that it must not change"),
        (["--bind", "site.toml", "site.toml"], "files that it must not change"),
    ],
)
def test_self_check_finds_a_hole_before_superexec_starts(outside: Outside, hole: list[str], found: str) -> None:
    site = outside.site
    look = "import sys; from federation.node import sandbox; sandbox._superexec = lambda *_: ['echo', 'started']; "
    look += "sys.exit(sandbox.main(sandbox.Path(sys.argv[1])))"
    command = sandbox.confined(site, sys.executable, "-I", "-c", look, str(site.folder))
    there = [word if word.startswith(("-", "CAP")) else str(site.folder / word) for word in hole]
    at = command.index("--remount-ro")
    command[at:at] = there
    done = subprocess.run(
        command, env=sandbox.environment(site), capture_output=True, text=True, timeout=300, check=False
    )
    assert ("started" in done.stdout) == (found == ""), done.stderr
    assert ("E_SANDBOX_OPEN" in done.stderr) == (found != "")
    assert found in done.stderr


def test_superexec_does_not_start_without_the_system_call_filter(outside: Outside) -> None:
    site = outside.site
    command = sandbox.confined(site, sys.executable, "-I", "-m", "federation.node.sandbox", str(site.folder))
    assert command[1:3] == ["-I", str(sandbox.CONFINEMENT)]
    command = command[3:]
    at = command.index("/proc/keys") - 2
    del command[at : at + 6]  # also remove the mount that hides the lists of keys
    done = subprocess.run(
        command, env=sandbox.environment(site), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 1
    assert "E_SANDBOX_OPEN" in done.stderr
    assert "every system call" in done.stderr
    assert "/proc/keys" in done.stderr


# mov eax, 20; int 0x80; ret: getpid, as called by a 32-bit program.
INT_80 = """
import ctypes, mmap
code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
code.write(bytes.fromhex("b814000000cd80c3"))
ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()
print("went on")
"""
X32 = """
import ctypes
ctypes.CDLL(None).syscall(ctypes.c_long(0x40000000 + 39))
print("went on")
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="only x86 has several kinds of system calls")
@pytest.mark.parametrize("code", [INT_80, X32], ids=["int 0x80", "x32"])
def test_system_call_of_another_architecture_kills_the_process(outside: Outside, code: str) -> None:
    program = [sys.executable, "-I", "-c", code]
    options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 60}
    bare = subprocess.run(program, check=False, **options)
    if bare.stdout != "went on\n":
        pytest.skip("this kernel has no such calls")
    command = sandbox.confined(outside.site, *program)
    within = subprocess.run(command, check=False, env=sandbox.environment(outside.site), **options)
    assert within.stdout == ""
    assert within.returncode in (-signal.SIGSYS, 128 + signal.SIGSYS), within.stderr


# --- how it ends ------------------------------------------------------------------------------------------


def test_relay_returns_exit_code_and_supports_long_socket_paths(tmp_path: Path) -> None:
    place = tmp_path / ("long" * 40) / "runtime.sock"
    place.parent.mkdir()
    assert len(str(place)) > 107  # sockaddr_un
    relay = [sys.executable, "-I", str(sandbox.RELAY), f"unix:{place}", "tcp:9"]
    ended = subprocess.run([*relay, "sh", "-c", f"[ -S {place} ] && exit 7"], timeout=300, check=False)
    assert ended.returncode == 7
    failed = subprocess.run([*relay[:-2], "tcp:1", "tcp:99999", "no-such-program"], capture_output=True, check=False)
    assert failed.returncode == 1
    assert b"Traceback" not in failed.stderr


@pytest.mark.parametrize("how", ["stop", "kill -9"])
def test_no_sandboxed_process_remains(outside: Outside, how: str) -> None:
    """When the reaper process ends for any reason, every process in the sandbox ends."""
    relay = [sys.executable, "-I", str(sandbox.RELAY), f"unix:{outside.folder / 'r'}", "tcp:9"]
    shell = "trap '' TERM; sleep 301 & sleep 302"
    command = [*relay, *sandbox.confined(outside.site, "sh", "-c", shell)]
    process = Process("walls", command, log=outside.folder / "log", environment=sandbox.environment(outside.site))
    with process:
        family = wait_for(lambda: [p for p in [descendants(process.pid, read_parents())] if len(p) >= 6])[0]
        if how == "stop":
            process.stop()
        else:
            os.kill(process.pid, signal.SIGKILL)
        wait_for(lambda: not [pid for pid in family if Path(f"/proc/{pid}").exists()])


def wait_for(true: Callable[[], Any], *, seconds: float = 120) -> Any:
    deadline = time.monotonic() + seconds
    while not (answer := true()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return answer


# --- a real task ------------------------------------------------------------------------------------------

STUDY = {
    "study": {
        "name": "sandboxed",
        "rounds": 1,
        "local_epochs": 1,
        "sites": 1,
        "quorum": 1,
        "wait_s": 60,
        "round_timeout_s": 120,
        "synthetic": True,
    },
    "network": {"architecture": "resnet10", "widen_factor": 0.125},
}
APP = """
[project]
name = "sandboxed"
version = "0.1.0"
description = "Asks one site for one round."
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "tests"

[tool.flwr.app.components]
serverapp = "sandboxed.server_app:app"
clientapp = "sandboxed.client_app:app"

[tool.flwr.app.config]
study = '''{study}'''
run = "sandboxed-1"
answer = "{answer}"
"""
CLIENT_APP = """
from federation.client.client_app import app

__all__ = ["app"]
"""
SERVER_APP = """
import json
import time
from pathlib import Path

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp

from federation.protocol.flat_weights import pack
from federation.protocol.reply_validation import encode
from federation.protocol.study_config import Study
from models.network import build_network

app = ServerApp()


@app.main()
def main(grid, context):
    study = Study.model_validate_json(context.run_config["study"])
    arrays, buffers = pack(build_network(study.network, seed=1))
    config = ConfigRecord({"server-round": 1})
    content = RecordDict({"arrays": encode(arrays), "buffers": encode(buffers), "config": config})
    while not (nodes := list(grid.get_node_ids())):
        time.sleep(0.5)
    (reply,) = grid.send_and_receive([Message(content, nodes[0], "train")], timeout=300)
    said = reply.error.reason if reply.has_error() else dict(reply.content.metric_records["metrics"])
    Path(context.run_config["answer"]).write_text(json.dumps(said))
"""


def write_app(folder: Path, answer: Path) -> Path:
    package = folder / "app" / "sandboxed"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "client_app.py").write_text(CLIENT_APP)
    (package / "server_app.py").write_text(SERVER_APP)
    (folder / "app" / "pyproject.toml").write_text(APP.format(study=json.dumps(STUDY), answer=answer))
    return folder / "app"


@pytest.fixture(scope="module")
def task(outside: Outside, small_site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator["Task"]:
    """Send one real message to a site with a sandboxed SuperExec. Yields its reply and the running processes."""
    folder = tmp_path_factory.mktemp("task")
    shutil.copytree(small_site.folder, folder / "site")
    settings = folder / "site" / "site.toml"
    settings.write_text(settings.read_text().replace("min_patients = 3\n", "min_patients = 2\n", 1))
    site = Site.open(folder / "site")
    (folder / "secret").write_bytes(SECRET)
    link, runtime = free_port(), free_port()
    home = folder / "flower"
    home.mkdir()
    (home / "config.toml").write_text(f'[superlink.here]\naddress = "127.0.0.1:{link}"\ninsecure = true\n')

    def flower(name: str, *arguments: str) -> Process:
        command = [flower_command(f"flower-{name}"), "--insecure", *arguments]
        return Process(name, command, log=folder / f"{name}.log", environment=flower_environment(home))

    answer = folder / "answer.json"
    with ExitStack() as stack:
        server = flower("superlink", f"--port={link}", "--disable-runtime-dependency-installation")
        stack.enter_context(server).wait_until(lambda: port_is_taken(LOOPBACK, link), seconds=300)
        node = [f"--superlink=127.0.0.1:{link}", "--host=127.0.0.1", f"--port={runtime}", "--isolation=process"]
        stack.enter_context(flower("supernode", *node, f"--superexec-auth-secret-file={folder / 'secret'}"))
        log = folder / "sandbox.log"
        process = sandbox.start_superexec(site, runtime_port=runtime, secret_file=folder / "secret", log=log)
        stack.enter_context(process)
        began = time.monotonic()
        run = [flower_command("flwr"), "run", str(write_app(folder, answer)), "here"]
        submitted = subprocess.run(run, env=flower_environment(home), capture_output=True, timeout=300, check=False)
        assert submitted.returncode == 0, submitted.stdout.decode() + submitted.stderr.decode()
        while not answer.exists() and time.monotonic() < began + 400 and process.running:
            time.sleep(0.5)
        time.sleep(1)
        yield Task(site, process, json.loads(answer.read_text()) if answer.exists() else None, folder)


@dataclass
class Task:
    site: Site
    process: Process
    answer: Any
    folder: Path


def test_sandboxed_app_trains_and_replies(task: Task) -> None:
    logs = "".join((task.folder / f"{name}.log").read_text()[-2000:] for name in ("sandbox", "supernode", "superlink"))
    assert isinstance(task.answer, dict), f"{task.answer}\n{logs}"
    assert task.answer["num-examples"] >= 2
    assert task.answer["train_loss"] > 0
    assert "training for round 1" in (task.site.logs / "client.log").read_text()


def test_task_writes_only_its_log_to_the_site(task: Task, small_site: Site) -> None:
    def files(site: Site) -> set[str]:
        return {str(path.relative_to(site.folder)) for path in site.folder.rglob("*") if not path.is_dir()}

    new = {"logs/client.log", "sandbox/runtime.sock", "sandbox/secret"}
    assert files(task.site) - files(small_site) == new


def test_all_processes_of_the_sandbox_end(task: Task) -> None:
    guard = task.process.pid
    family = descendants(guard, read_parents())
    assert len(family) >= 5  # relay, bwrap twice, relay, SuperExec
    task.process.stop()
    assert "Traceback" not in (task.folder / "sandbox.log").read_text()
    assert not [pid for pid in family if Path(f"/proc/{pid}").exists()]
