"""A real PACS for tests: Orthanc, in its own network namespace if permitted, and ended by its process id.

Debian's Orthanc listens on all addresses. As root, each test therefore runs it in a network namespace with only a
loopback interface. The namespace ends with its last process. Without root, Orthanc itself authenticates its clients.
"""

import base64
import contextlib
import ctypes
import json
import os
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from federation.system.process import free_port

ORTHANC = Path("/usr/sbin/Orthanc")
DICOMWEB = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
USER, PASSWORD = "node", "synthetic-password"
AET = "PACSA"
_CLONE_NEWNET = 0x40000000


def require_orthanc() -> None:
    """Skip the test where Orthanc is not installed."""
    for path in (ORTHANC, DICOMWEB):
        if not path.is_file():
            pytest.skip(f"no real PACS here: {path} is absent (Debian packages orthanc and orthanc-dicomweb)")


def _own_network() -> int | None:
    """Return a descriptor of a new network namespace with only loopback, or None without permission."""
    made: list[int] = []

    def make() -> None:  # a namespace belongs to a thread: this process stays in its own
        libc = ctypes.CDLL(None, use_errno=True)
        if os.geteuid() == 0 and libc.unshare(_CLONE_NEWNET) == 0:
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            made.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    return made[0] if made else None


class Orthanc:
    """One Orthanc with its storage in `folder`. `settings` override the defaults (see Orthanc's configuration file).

    `modalities`: maps a name to [AE title, host, port] of a node that may find, get and move. Code that connects to
    Orthanc must run inside `with orthanc.inside()`, which covers this thread and the threads and processes it starts.

    HTTPS is not available: Debian 13's Orthanc crashes on the first connection (signal 11). Use a TLS proxy instead.
    """

    def __init__(
        self,
        folder: Path,
        *,
        modalities: dict[str, list[Any]] | None = None,
        settings: dict[str, Any] | None = None,
    ) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._network = _own_network()
        self.process: subprocess.Popen[bytes] | None = None
        with self.inside():
            self.http_port, self.dicom_port = free_port(), free_port()
        ours = {
            "Name": "synthetic PACS",
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "Plugins": [str(DICOMWEB)],
            "HttpPort": self.http_port,
            "DicomPort": self.dicom_port,
            "DicomAet": AET,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": True,
            "RegisteredUsers": {USER: PASSWORD},
            "DicomCheckCalledAet": True,
            "DicomCheckModalityHost": True,
            "DicomAlwaysAllowEcho": False,
            "DicomAlwaysAllowStore": False,
            "DicomAlwaysAllowFind": False,
            "DicomAlwaysAllowFindWorklist": False,
            "DicomAlwaysAllowGet": False,
            "DicomAlwaysAllowMove": False,
            "DicomModalities": modalities or {},
            "StableAge": 1,
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        }
        self._configuration = folder / "orthanc.json"
        self._configuration.write_text(json.dumps(ours | (settings or {})))

    @property
    def url(self) -> str:
        """The DICOMweb root URL."""
        return f"{self._root}/dicom-web"

    @property
    def _root(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Run this thread, and what it starts, in Orthanc's network namespace."""
        if self._network is None:
            yield
            return
        libc = ctypes.CDLL(None, use_errno=True)
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            assert libc.setns(self._network, _CLONE_NEWNET) == 0
            yield
        finally:
            assert libc.setns(home, _CLONE_NEWNET) == 0
            os.close(home)

    def start(self, *, seconds: float = 120) -> "Orthanc":
        """Start or restart it on the same storage and wait until it answers."""
        assert self.process is None
        with (self.folder / "orthanc.log").open("ab") as log, self.inside():
            self.process = subprocess.Popen(
                [ORTHANC, str(self._configuration)], stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(OSError):
                self.rest("GET", "/system")
                return self
            time.sleep(0.05)
        self.stop()
        raise AssertionError(f"Orthanc did not start:\n{(self.folder / 'orthanc.log').read_text()[-2000:]}")

    def stop(self) -> None:
        """End it in any state."""
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(timeout=120)
            except subprocess.TimeoutExpired:
                self.kill()
        self.process = None

    def kill(self) -> None:
        """End it with kill -9."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self.process = None

    def rest(self, method: str, path: str, body: bytes | None = None) -> Any:
        """Send a request to Orthanc's REST API. Returns the JSON response."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        login = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        headers = {"Authorization": f"Basic {login}"}
        request = urllib.request.Request(f"{self._root}{path}", data=body, method=method, headers=headers)
        with self.inside(), opener.open(request, timeout=60) as response:
            return json.loads(response.read() or b"null")

    def upload(self, files: Iterable[Path]) -> int:
        """Store DICOM files. Returns the number of refused files."""
        refused = 0
        for path in files:
            try:
                self.rest("POST", "/instances", path.read_bytes())
            except urllib.error.HTTPError as error:
                assert error.code == 400, error
                refused += 1
        return refused

    def close(self) -> None:
        """End it and close its network namespace."""
        self.stop()
        if self._network is not None:
            os.close(self._network)
            self._network = None
