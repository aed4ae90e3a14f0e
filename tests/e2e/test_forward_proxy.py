"""A hospital that reaches the study's server only through a forward proxy: tinyproxy, which requires a login.

The site is in a network namespace with one link, at whose far end the proxy listens. The server is at the far end too,
on an address that the site has no route to, under a name that only the far end resolves.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from federation.system.reaper import descendants, read_parents
from tests.canary.cable import SERVER as FAR_END
from tests.canary.cable import SITE as NEAR_END
from tests.canary.cable import Cable
from tests.canary.harness import Running
from tests.e2e.conftest import FEDTHORAX
from tests.e2e.test_federation import STUDY

HOST, ADDRESS, PORT, PROXY_PORT = "study.test", "127.0.0.2", 8443, 3128
USER, PASSWORD = "node", "mauve-4711"
LOGIN = f"{USER}:{PASSWORD}"

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(shutil.which("tinyproxy") is None, reason="tinyproxy is not installed"),
    pytest.mark.skipif(bool(Cable.why_not()), reason=Cable.why_not()),
]


@dataclass
class Networks:
    """The two ends of the link, and what was started there."""

    folder: Path
    cable: Cable
    started: list[Running] = field(default_factory=list)

    @property
    def server(self) -> Path:
        return self.folder / "server"

    @property
    def site(self) -> Path:
        return self.folder / "north"

    @property
    def proxy_log(self) -> Path:
        return self.folder / "tinyproxy.log"

    def far(self, *command: str | Path) -> list[str]:
        """Return the command that runs `command` where server and proxy are, and where HOST has an address."""
        with_names = 'mount --bind "$0" /etc/hosts && exec "$@"'  # for this command alone: see ip-netns(8)
        return self.cable.at_server("sh", "-c", with_names, *map(str, (self.folder / "hosts", *command)))

    def near(self, *command: str | Path) -> list[str]:
        """Return the command that runs `command` where the site is."""
        return self.cable.at_site(*map(str, command))

    def start(self, command: Sequence[str], login: str = "") -> Running:
        running = Running(self.folder / f"output-{len(self.started)}.log", command, environment(login))
        self.started.append(running)
        return running

    def end(self) -> None:
        for running in reversed(self.started):
            running.interrupt()

    @contextmanager
    def proxy(self, *, refuses: bool = False) -> Iterator[None]:
        """Run the proxy, and kill it at the end. `refuses`: it forbids CONNECT to the server's port."""
        settings = self.folder / "tinyproxy.conf"
        settings.write_text(
            f'Port {PROXY_PORT}\nListen {FAR_END}\nAllow {NEAR_END}\nLogFile "{self.proxy_log}"\nLogLevel Connect\n'
            f"BasicAuth {USER} {PASSWORD}\nConnectPort {443 if refuses else PORT}\n"
        )
        running = self.start(self.far("tinyproxy", "-d", "-c", settings))
        try:
            wait_until(lambda: self.connects(FAR_END, PROXY_PORT))
            yield
        finally:
            running.kill()

    def connects(self, host: str, port: int) -> bool:
        """Whether something accepts a TCP connection of the site at this address."""
        code = f"import socket; socket.create_connection(({host!r}, {port}), timeout=5)"
        return not subprocess.run(self.near("python3", "-c", code), capture_output=True, check=False).returncode


def environment(login: str) -> dict[str, str]:
    """Return the environment of a command. `login`: "user:password" at the proxy; '' for a command without proxy."""
    without = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return without | ({"HTTPS_PROXY": f"http://{login}@{FAR_END}:{PROXY_PORT}"} if login else {})


def run(command: Sequence[str], login: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment(login))


def ok(command: Sequence[str], login: str = "") -> str:
    done = run(command, login)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextmanager
def held(node: Running) -> Iterator[None]:
    """Hold the processes in a node's sandbox, so that the study's code answers no task meanwhile."""
    parents = read_parents()
    outer = [
        pid for pid in node.family() if Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"\0")[0].endswith(b"bwrap")
    ]
    pids = {each for pid in outer for each in (pid, *descendants(pid, parents))}
    assert pids
    _tell(pids, signal.SIGSTOP)
    try:
        yield
    finally:
        _tell(pids, signal.SIGCONT)


def _tell(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):  # the node replaces processes that it has ready
            os.kill(pid, number)


def wait_until(happens: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.fixture(scope="module")
def networks(two_sites: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Networks]:
    """The running server at the far end, and an ingested site that has not joined the study."""
    folder = tmp_path_factory.mktemp("proxied")
    shutil.copytree(two_sites / "north", folder / "north")
    (folder / "hosts").write_text(f"127.0.0.1 localhost\n{ADDRESS} {HOST}\n")
    with Cable() as cable, ExitStack() as ends:
        networks = Networks(folder, cable)
        ends.callback(networks.end)
        ok(networks.far(FEDTHORAX, "server", "init", networks.server, "--host", HOST, "--port", str(PORT)))
        settings = networks.server / "server.toml"
        before, after = 'host = "0.0.0.0"', f'host = "{ADDRESS}"'
        assert settings.read_text().count(before) == 1
        settings.write_text(settings.read_text().replace(before, after))
        server = networks.start(networks.far(FEDTHORAX, "server", "start", networks.server))
        server.wait_for("The server is up", seconds=300)
        yield networks


@pytest.fixture(scope="module")
def join(networks: Networks) -> list[str]:
    """The command with which the site joins the study, once."""
    enrol = networks.far(FEDTHORAX, "server", "enrol", networks.server, "north", "--json")
    return networks.near(FEDTHORAX, "node", "join", networks.site, json.loads(ok(enrol))["code"], "--as", "north")


def test_site_has_no_way_past_the_proxy(networks: Networks) -> None:
    assert not networks.connects(ADDRESS, PORT)
    assert not networks.connects(FAR_END, PORT)


@pytest.mark.parametrize(
    ("login", "refuses", "cause"), [(LOGIN, True, "HTTP 403"), (f"{USER}:wrong", False, "HTTP 401")]
)
def test_proxy_that_refuses_is_named_as_the_cause(
    networks: Networks, join: list[str], login: str, refuses: bool, cause: str
) -> None:
    with networks.proxy(refuses=refuses):
        done = run(join, login)
    assert done.returncode == 1
    assert re.search(f"E_SERVER_PROXY: .*{cause}\n", done.stderr)
    assert "Allow CONNECT" in done.stderr
    assert not (networks.site / "keys" / "ca.crt").exists()


def test_round_is_trained_through_a_proxy_that_is_killed_meanwhile(networks: Networks, join: list[str]) -> None:
    """The node is started while the proxy refuses it. The proxy is killed while the site has the task."""
    study, log = networks.folder / "study.toml", networks.site / "logs" / "node.log"
    text = STUDY.replace("timeout_s = 120", "timeout_s = 400").replace("sites = 3", "sites = 1")
    study.write_text(text.replace("quorum = 2", "quorum = 1").replace("rounds = 4", "rounds = 1"))
    with networks.proxy():
        ok(join, LOGIN)
    ok(networks.near(FEDTHORAX, "node", "approve-study", networks.site, study, "--yes"))
    with networks.proxy(refuses=True):
        node = networks.start(networks.near(FEDTHORAX, "node", "start", networks.site), LOGIN)
        node.wait_for(r"the proxy refuses the connection \(E_SERVER_PROXY\); the node keeps trying", seconds=300)
    with ExitStack() as until_killed:
        until_killed.enter_context(networks.proxy())
        node.wait_for("is online", seconds=300)
        run = networks.start(networks.far(FEDTHORAX, "study", "run", study, "--server", networks.server))
        node.wait_for(r"query.handshake(.|\n)*reply sent", seconds=300)
        with held(node):
            wait_until(lambda: log.read_text().count("Received successfully") == 2)  # the second task: train
            until_killed.close()
    node.wait_for(r"task received: train(.|\n)*reply sent", seconds=300)
    assert "round 1 of 1" not in run.text()  # the reply waits in the gateway
    with networks.proxy():
        assert run.wait(seconds=400) == 0, run.text() + node.text()
        node.interrupt()
    assert "round 1 of 1 · 1 of 1 sites" in run.text()
    assert not re.search(r"\bE_|LOST", run.text()), run.text()
    requests = re.findall("Request .*: (.*) HTTP/1.1", networks.proxy_log.read_text())
    assert set(requests) == {f"CONNECT {HOST}:{PORT}"}
    secret = PASSWORD.encode()
    files = [path for folder in (networks.site, networks.server) for path in folder.rglob("*") if path.is_file()]
    assert not [path for path in files if secret in path.read_bytes()]
    assert PASSWORD not in node.text()
