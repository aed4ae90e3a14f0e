"""A FHIR R4 server of other authors for tests: @medplum/fhir-router (npm, installed by `make viewer`).

It checks every resource against the published profiles. node_fhir.cjs says which part of the server is ours.
"""

import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.helpers.program_output import next_line

MODULES = Path(__file__).resolve().parents[2] / "viewer/node_modules"
PAGE = 20  # the most resources in a page
_PROGRAM = Path(__file__).with_name("node_fhir.cjs")
needs_peer = pytest.mark.skipif(
    not (shutil.which("node") and (MODULES / "@medplum/fhir-router").is_dir()),
    reason="Node.js or @medplum/fhir-router is not installed (`make viewer`)",
)


@dataclass
class FhirPeer:
    """The running server. `log`: each request with the status of its answer, and what is wrong with a refused one."""

    url: str
    log: list[str] = field(default_factory=list)

    def put(self, resource: dict[str, Any]) -> None:
        """Store a resource with its id; it must be valid."""
        name = f"{resource['resourceType']}/{resource['id']}"
        answer = requests.put(f"{self.url}/{name}", json=resource, timeout=60)
        assert answer.status_code in (200, 201), answer.text

    def get(self, path: str) -> dict[str, Any]:
        content: dict[str, Any] = requests.get(f"{self.url}/{path}", timeout=60).json()
        return content

    def all(self, kind: str) -> list[dict[str, Any]]:
        """Return all resources of a type, if a page holds them."""
        return [each["resource"] for each in self.get(kind).get("entry", [])]

    def asked(self, beginning: str) -> list[str]:
        return [line for line in self.log if line.startswith(beginning)]


@contextmanager
def running_peer() -> Iterator[FhirPeer]:
    """Start an empty server."""
    command, pipe = ["node", str(_PROGRAM), str(MODULES)], subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as server:
        output = server.stdout
        assert output is not None
        try:
            peer = FhirPeer(f"http://127.0.0.1:{int(next_line(server))}/r4")
            reader = threading.Thread(target=lambda: peer.log.extend(line.strip() for line in output), daemon=True)
            reader.start()
            yield peer
        finally:
            server.kill()
        reader.join(60)
