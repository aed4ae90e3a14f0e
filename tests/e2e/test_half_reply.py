"""A hostile hospital announces a reply and never sends the rest of it: the round ends without it. Synthetic data."""

import contextlib
import json
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from federation.system.process import LOOPBACK, free_port
from tests.e2e.conftest import Command, allow, enter, ok, run_command, wait_online
from tests.e2e.test_federation import STUDY

pytestmark = pytest.mark.e2e

TIMEOUT_S = 60  # of the round
MOST_BYTES = 100_000  # more than all requests but the parts of a model, which has half a megabyte


class Relay:
    """Passes connections on to the server, but of each no more than MOST_BYTES of what the hospital sends.

    A connection that would carry more stays open and silent. New ones work, so the hospital remains online.
    """

    def __init__(self, to: int) -> None:
        self.cut = threading.Event()  # a connection has been cut
        self._to, self._open = to, list[socket.socket]()
        self._listener = socket.create_server((LOOPBACK, 0))
        self.port: int = self._listener.getsockname()[1]

    def run(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection((LOOPBACK, self._to))
                self._open += [near, far]
                for source, target, most in ((near, far, MOST_BYTES), (far, near, None)):
                    threading.Thread(target=self._pass_on, args=(source, target, most), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, most: int | None) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while content := source.recv(2**14):
                passed += len(content)
                if most and passed > most:
                    self.cut.set()
                    return
                target.sendall(content)
            target.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        for each in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


@contextmanager
def relay(to: int) -> Iterator[Relay]:
    made = Relay(to)
    thread = threading.Thread(target=made.run, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        made.close()
        thread.join()


def test_hospital_that_sends_half_a_reply_does_not_hold_up_the_round(
    two_sites: Path, tmp_path: Path, start: Callable[..., Command]
) -> None:
    """Without the round's end, the round took 186 s: so long did Flower wait for the missing parts."""
    server, sites, port = tmp_path / "server", tmp_path / "sites", free_port()
    shutil.copytree(two_sites, sites)
    study = tmp_path / "study.toml"
    text = STUDY.replace("sites = 3", "sites = 2").replace("quorum = 2", "quorum = 1")
    study.write_text(text.replace("rounds = 4", "rounds = 1").replace("timeout_s = 120", f"timeout_s = {TIMEOUT_S}"))
    ok("server", "init", server, "--port", str(port))
    start("server", "start", server).wait_for("The server is up", seconds=300)
    for name in ("north", "south"):
        enter(sites / name, server, name)
        allow(sites / name, study)
    with relay(port) as slow:
        settings = sites / "south" / "site.toml"
        before, after = f'"localhost:{port}"', f'"localhost:{slow.port}"'
        assert settings.read_text().count(before) == 1
        settings.write_text(settings.read_text().replace(before, after))
        nodes = [start("node", "start", sites / name) for name in ("north", "south")]
        wait_online(nodes)
        done = run_command("study", "run", study, "--server", server)
        for node in nodes:
            node.interrupt()
    assert slow.cut.is_set()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "south: E_SITE_MISSING" in done.stderr, done.stderr
    assert "round 1 of 1 · 1 of 2 sites" in done.stderr
    (history,) = server.glob("runs/*/history.json")
    (seconds,) = (entry["seconds"] for entry in json.loads(history.read_text()) if entry.get("round") == 1)
    assert seconds < 2 * TIMEOUT_S
