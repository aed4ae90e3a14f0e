"""The only network link of a site: two network namespaces, joined by a pair of interfaces and to nothing else."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.canary.capture import READY
from tests.helpers.program_output import next_line

SERVER, SITE = "10.77.0.1", "10.77.0.2"
_ALL_NETWORKS = Path("/etc/netns")  # ip-netns(8): files in this folder replace those of /etc inside the namespace


class Tap:
    """A packet capture of the link. It runs in a separate process at the server's end."""

    def __init__(self, cable: "Cable", file: Path) -> None:
        self.file = file
        self._process = subprocess.Popen(
            cable.at_server(sys.executable, "-m", "tests.canary.capture", "cable", str(file)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        assert next_line(self._process) == READY

    def stop(self) -> int:
        """Stop the capture and return the number of frames that it missed."""
        self._process.terminate()
        output, errors = self._process.communicate(timeout=60)
        assert self._process.returncode == 0, output + errors
        return int(output)


class Cable:
    """Context manager: create the two namespaces and the link between them."""

    def __init__(self) -> None:
        self._server, self._site = (f"canary-{os.getpid()}-{end}" for end in ("server", "site"))

    @staticmethod
    def why_not() -> str:
        """Return why the proof cannot run on this machine, or "" if it can."""
        if os.geteuid() != 0:
            return "only root may make network namespaces"
        if shutil.which("ip") is None:
            return "there is no ip(8) here (Debian package iproute2)"
        if shutil.which("bwrap") is None:
            return "there is no sandbox here (Debian package bubblewrap)"
        tried = subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False)
        return "" if tried.returncode == 0 else "this machine lets nobody make network namespaces"

    def __enter__(self) -> Self:
        for name in (self._server, self._site):
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", self._server, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", self._site)
        for name, address in ((self._server, SERVER), (self._site, SITE)):
            _ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            _ip("-n", name, "link", "set", "cable", "up")
        names = _ALL_NETWORKS / self._site
        names.mkdir(parents=True, exist_ok=True)
        # A name server at the far end that never answers: DNS queries are then visible on the link.
        (names / "resolv.conf").write_text(f"nameserver {SERVER}\noptions timeout:1 attempts:1\n")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(_ALL_NETWORKS / self._site, ignore_errors=True)
        for name in (self._server, self._site):
            _ip("netns", "delete", name)

    def at_server(self, *command: str) -> list[str]:
        """Return the command that runs `command` at the server's end."""
        return ["ip", "netns", "exec", self._server, *command]

    def at_site(self, *command: str) -> list[str]:
        """Return the command that runs `command` at the site's end."""
        return ["ip", "netns", "exec", self._site, *command]

    def site_address(self) -> bytes:
        """Return the hardware (MAC) address of the site's interface."""
        shown = _ip("-n", self._site, "-brief", "link", "show", "cable")
        return bytes.fromhex(shown.split()[2].replace(":", ""))


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout
