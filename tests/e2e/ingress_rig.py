"""Test rig for the ingress: a server folder, a fake SuperLink, the ingress, and optionally nginx in front of it.

The ingress runs in a thread of the test process. nginx runs as a process.
"""

import asyncio
import contextlib
import hashlib
import http.client
import json
import logging
import shutil
import ssl
import subprocess
import tempfile
import threading
import time
from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from aiohttp import web
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from federation.enrolment.authority import Authority
from federation.enrolment.certificates import (
    client_tls,
    create_node_key,
    load_node_key,
    open_authority,
    public_pem,
    trust,
)
from federation.enrolment.registry import record, registry
from federation.ingress.listener import serve
from federation.server.start import init_server
from federation.superlink.control import ca_certificate, read_server_config
from federation.system.process import free_port, port_is_taken
from tests.helpers.waiting import eventually

NGINX = shutil.which("nginx") or ("/usr/sbin/nginx" if Path("/usr/sbin/nginx").exists() else None)
CONFIGURATION = Path(__file__).resolve().parents[2] / "docs" / "nginx" / "fedthorax.conf"
PULL = "/v1/fleet/pull-messages"


@dataclass
class Seen:
    """One request as received by the fake SuperLink."""

    path: str
    headers: dict[str, str]
    pairs: list[tuple[str, str]]  # the headers as received: a name may occur twice
    sha256: str
    length: int


@dataclass
class Node:
    """Key and certificate of a node, as files of a site."""

    folder: Path

    @property
    def key(self) -> Path:
        return self.folder / "node"

    @property
    def certificate(self) -> Path:
        return self.folder / "node.crt"

    def headers(self, *, seconds_ago: float = 0.0) -> dict[str, str]:
        """Return the headers that Flower's SuperNode sends with a request."""
        key = load_node_key(self.key)
        timestamp = (datetime.now(UTC) - timedelta(seconds=seconds_ago)).isoformat()
        signature = key.sign(timestamp.encode("ascii"), ec.ECDSA(hashes.SHA256()))
        return {
            "content-type": "application/protobuf",
            "accept": "application/protobuf",
            "flwr-public-key": b64encode(public_pem(key.public_key())).decode(),
            "flwr-timestamp": timestamp,
            "flwr-signature": b64encode(signature).decode(),
        }


@dataclass
class Rig:
    """The front end under test listens on `port`. `seen` lists the requests that reached the SuperLink."""

    folder: Path
    port: int
    seen: list[Seen] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    answer: bytes = b"from the SuperLink"

    def make_node(self, name: str, *, authority: Authority | None = None, now: datetime | None = None) -> Node:
        """Create a key and a certificate for it that is not in the registry."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        key = load_node_key(create_node_key(folder / "node").with_suffix(""))
        signer = authority or open_authority(ca_certificate(self.folder).parent)
        certificate = signer.node_certificate(key.public_key(), name, now=now)
        (folder / "node.crt").write_bytes(certificate.public_bytes(Encoding.PEM))
        return Node(folder)

    def enrol_node(self, name: str, *, now: datetime | None = None) -> Node:
        """Create a node that has joined as site `name`."""
        from cryptography import x509

        node = self.make_node(name, now=now)
        with registry(self.folder) as db:
            record(db, name, x509.load_pem_x509_certificate(node.certificate.read_bytes()))
            db.execute("INSERT OR REPLACE INTO sites (name, patients) VALUES (?, 100)", (name,))
        return node

    def connect(self, node: Node | None) -> http.client.HTTPSConnection:
        """Open a connection on which `node` presents its certificate."""
        ca = ca_certificate(self.folder)
        if node is None:
            tls = trust(ca.read_text())
        else:
            tls = client_tls(ca, certificate=node.certificate, private_key=node.key)
        return http.client.HTTPSConnection("localhost", self.port, context=tls, timeout=60)

    def ask(
        self,
        node: Node | None,
        path: str = PULL,
        *,
        method: str = "POST",
        headers: dict[str, str] | None = None,
        body: bytes = b"hello",
        connection: http.client.HTTPSConnection | None = None,
    ) -> tuple[int, str]:
        """Send one request. Return its status and the refusal code or the text of the response.

        If TLS itself refuses, there is no response: return 0 and the line in the ingress log with the error.
        """
        used = connection or self.connect(node)
        try:
            used.request(method, path, body=body, headers=headers or (node.headers() if node else {}))
            response = used.getresponse()
            content = response.read()
        except (ssl.SSLError, ConnectionError) as error:
            eventually(lambda: self.lines, seconds=20)
            return 0, f"{self.lines[-1] if self.lines else 'no line'} ({error!r})"
        finally:
            if connection is None:
                used.close()
        if response.status == 200:
            return 200, content.decode(errors="replace")
        return response.status, json.loads(content)["detail"]


class _Lines(logging.Handler):
    def __init__(self, lines: list[str]) -> None:
        super().__init__()
        self.lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextlib.contextmanager
def open_rig(
    folder: Path, *, nginx: bool = False, authority: Authority | None = None, hosts: Sequence[str] = ()
) -> Iterator[Rig]:
    """Create a new server in `folder` behind its ingress, optionally also behind nginx."""
    port = free_port()
    init_server(folder, port=port, authority=authority, hosts=hosts)
    settings = folder / "server.toml"
    (folder / "logs").mkdir()
    with contextlib.ExitStack() as stack:
        run = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="door-")))  # socket paths must be short
        if nginx:
            settings.write_text(settings.read_text() + f'\nsocket = "{run}/door.sock"\n')
        rig = Rig(folder, port)
        logger, handler = logging.getLogger("fedthorax.door"), _Lines(rig.lines)
        before = logger.level
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        stack.callback(logger.setLevel, before)
        stack.callback(logger.removeHandler, handler)
        stack.enter_context(_in_thread(rig))
        if nginx:
            stack.enter_context(running_nginx(rig, run))
        yield rig


@contextlib.contextmanager
def _in_thread(rig: Rig) -> Iterator[None]:
    """Run the ingress and the fake SuperLink in their own event loop."""
    runner = asyncio.Runner()
    loop = runner.get_loop()
    ended, ready, failed = asyncio.Event(), threading.Event(), []

    async def superlink(request: web.BaseRequest) -> web.StreamResponse:
        digest, length = hashlib.sha256(), 0
        async for piece in request.content.iter_any():
            digest.update(piece)
            length += len(piece)
        if request.raw_path.startswith("/v1/control/"):
            return web.Response(content_type="application/protobuf")  # local request: the answer lists no nodes
        headers = {name.lower(): value for name, value in request.headers.items()}
        rig.seen.append(Seen(request.raw_path, headers, [*request.headers.items()], digest.hexdigest(), length))
        return web.Response(body=rig.answer, content_type="application/protobuf")

    async def run() -> None:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate = ca_certificate(rig.folder).with_name("loopback.crt")
        tls.load_cert_chain(certificate, certificate.with_suffix(".key"))
        config = read_server_config(rig.folder)
        server = web.Server(superlink)
        listener = await loop.create_server(server, "127.0.0.1", config.superlink_port, ssl=tls)
        door = asyncio.create_task(serve(rig.folder, ended))
        while not door.done() and not _is_open(rig):
            await asyncio.sleep(0.02)
        ready.set()
        await door
        listener.close()
        await server.shutdown(timeout=1)

    def main() -> None:
        try:
            runner.run(run())
        except BaseException as error:
            failed.append(error)
            ready.set()

    thread = threading.Thread(target=main, daemon=True)
    thread.start()
    try:
        assert ready.wait(300)
        assert not failed, failed
        yield
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(60)
        runner.close()


def _is_open(rig: Rig) -> bool:
    socket = read_server_config(rig.folder).socket
    return socket.exists() if socket else port_is_taken("127.0.0.1", rig.port)


@contextlib.contextmanager
def running_nginx(rig: Rig, run: Path) -> Iterator[None]:
    """Run nginx as an ordinary process, with the documented configuration and the paths and port of this test."""
    assert NGINX
    text = CONFIGURATION.read_text()
    for old, new in (
        ("/var/lib/fedthorax/server", str(rig.folder)),
        ("/run/fedthorax", str(run)),
        ("/var/log/nginx", str(run)),
        ("listen 8443 ssl", f"listen 127.0.0.1:{rig.port} ssl"),
        ("    listen [::]:8443 ssl;\n", ""),
    ):
        assert old in text
        text = text.replace(old, new)
    (run / "fedthorax.conf").write_text(text)
    kept = "\n".join(f"{name}_temp_path {run}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    (run / "nginx.conf").write_text(
        f"daemon off; user root; worker_processes 1; pid {run}/nginx.pid; error_log {run}/error.log;\n"
        f"worker_rlimit_nofile 16384;\nevents {{ worker_connections 8192; }}\n"
        f"http {{\n{kept}\ninclude {run}/fedthorax.conf;\n}}\n"
    )
    process = subprocess.Popen([NGINX, "-p", str(run), "-c", str(run / "nginx.conf")], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not port_is_taken("127.0.0.1", rig.port):
            assert process.poll() is None, (run / "error.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield
        rig.lines += (run / "fedthorax.log").read_text().splitlines()
    finally:
        process.terminate()
        process.wait(timeout=120)
