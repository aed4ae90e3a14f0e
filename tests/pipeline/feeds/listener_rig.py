"""A site with a listener for laboratory results, its process, and a sender: the client of the library `hl7`."""

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import hl7
from hl7.client import MLLPClient

from federation.system.process import free_port
from pipeline.records.laboratory import PcrResult, read_pcr
from pipeline.site.folder import Site, init_site
from tests.pipeline.records.laboratory.test_hl7 import DETECTED, NOT_DETECTED, TODAY, usual

ROOT = Path(__file__).resolve().parents[3]
SITE = """
[site]
name = "synthetic"
[laboratory]
format = "hl7"
[laboratory.listener]
port = {port}
keep_free_gb = 0
{more}
[outcomes]
file = "outcomes.csv"
"""
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def result(control: str = "C1", *, patient: str = "P-SECRET", positive: bool = True, status: str = "F") -> bytes:
    """A message with one result; its control id is `control`."""
    text = usual(patient, DETECTED if positive else NOT_DETECTED, status=status, order=f"order-{patient}")
    return text.replace("|1|P|", f"|{control}|P|").encode()


@dataclass
class Reply:
    """The acknowledgement of a message."""

    text: str
    message: hl7.Message = field(init=False)

    def __post_init__(self) -> None:
        self.message = hl7.parse(self.text)

    @property
    def code(self) -> str:
        return str(self.message["MSA.1"])

    @property
    def control_id(self) -> str:
        return str(self.message["MSA.2"])

    @property
    def error(self) -> str:
        """The number of HL7 table 0357."""
        return str(self.message["ERR.F3.R1.C1"])


@dataclass
class Rig:
    """The site, and its listener while it runs."""

    site: Site
    port: int
    process: subprocess.Popen[bytes] | None = None

    @classmethod
    def make(cls, folder: Path, more: str = "") -> "Rig":
        port = free_port()
        return cls(init_site(folder / "site", SITE.format(port=port, more=more)), port)

    @property
    def queue(self) -> Path:
        return self.site.folder / "results"

    @property
    def stored(self) -> list[bytes]:
        return sorted(path.read_bytes() for path in self.queue.rglob("*.hl7"))

    @property
    def log(self) -> str:
        return (self.site.folder / "listener.out").read_text()

    def start(self, step: str = "") -> None:
        """Start the listener in a process of its own and wait for its port."""
        command = [sys.executable, "-m", "tests.pipeline.feeds.killed_listener", str(self.site.folder), step]
        with (self.site.folder / "listener.out").open("ab") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=output, cwd=ROOT, env=ENVIRONMENT)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                return
            except ConnectionRefusedError:
                time.sleep(0.05)
        raise AssertionError(self.log)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(60)

    def send(self, message: bytes) -> Reply | None:
        """Send a message; None if the connection ends without an acknowledgement."""
        try:
            with MLLPClient("127.0.0.1", self.port) as client:
                client.socket.settimeout(60)
                answer = client.send_message(message)
        except ConnectionError:
            return None
        return Reply(answer.decode("latin-1").strip("\x0b\x1c\r") + "\r") if answer else None

    def read(self) -> tuple[list[PcrResult], list[str]]:
        """The results as an ingest reads them, and the codes of its findings."""
        site = Site.open(self.site.folder)
        assert site.settings.laboratory is not None
        results, findings = read_pcr(site.settings.laboratory, today=TODAY)
        return results, [finding.reason.code for finding in findings]


@contextmanager
def running(rig: Rig) -> Iterator[Rig]:
    """Run the listener within the block."""
    rig.start()
    try:
        yield rig
    finally:
        rig.stop()
        logging.debug(rig.log)
