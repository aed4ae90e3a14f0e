"""Run the ingress on its port with TLS and client certificates, or on a socket behind nginx."""

import asyncio
import logging
import ssl
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from federation.enrolment import reasons
from federation.enrolment.certificates import trust_file
from federation.enrolment.registry import registry
from federation.ingress.authorization import Ingress
from federation.ingress.connections import Gate, raise_descriptor_limit
from federation.superlink.control import ServerConfig, ca_certificate, loopback_certificate, read_server_config

# Also the limit for a whole request header: aiohttp closes a connection without a request after this time.
IDLE_SECONDS = 60.0
# OpenSSL's X509_V_FLAG_NO_CHECK_TIME: an expired certificate is refused at the request, with a code and the site's
# name, not by a broken connection.
_NO_CHECK_TIME = 0x200000

log = logging.getLogger("fedthorax.door")


class _TlsObject(ssl.SSLObject):
    """A TLS connection that logs a handshake failure caused by the caller's certificate; asyncio does not."""

    def do_handshake(self) -> None:
        try:
            super().do_handshake()
        except ssl.SSLCertVerificationError as error:
            log.info("refused site=? TLS handshake  %s: %s", reasons.CERTIFICATE_UNKNOWN.code, error.verify_message)
            raise


class _Server(web.Server):
    """Reports the end of a connection to the gate."""

    gate: Gate | None = None  # None if nginx limits the connections

    def connection_lost(self, handler: Any, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        if self.gate is not None:
            self.gate.ended(handler)


def server_tls(folder: Path) -> ssl.SSLContext:
    """TLS 1.2 or later with the server's certificate. Only client certificates of the study's authority are valid."""
    certificates = ca_certificate(folder).parent
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificates / "server.crt", certificates / "server.key")
    context.load_verify_locations(certificates / "ca.crt")
    context.verify_mode = ssl.CERT_OPTIONAL
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | _NO_CHECK_TIME
    # Each connection must prove possession of the key again.
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
    context.num_tickets = 0
    context.sslobject_class = _TlsObject
    return context


async def serve(folder: Path, ended: asyncio.Event) -> None:
    """Run the ingress of the server in `folder` until `ended` is set."""
    config = read_server_config(folder)
    superlink = aiohttp.TCPConnector(ssl=trust_file(loopback_certificate(folder)), limit=0)
    with registry(folder) as known:
        async with aiohttp.ClientSession(
            connector=superlink,
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=5),
            skip_auto_headers=("Accept-Encoding", "User-Agent"),
            cookie_jar=aiohttp.DummyCookieJar(),
        ) as session:
            server = _Server(
                Ingress(folder, config, known, session).answer,
                keepalive_timeout=IDLE_SECONDS,
                lingering_time=2.0,
                access_log=None,
                auto_decompress=False,
            )
            listener = await _listen(server, folder, config)
            await ended.wait()
            listener.close()
            server.pre_shutdown()
            await server.shutdown(timeout=2.0)


async def _listen(server: _Server, folder: Path, config: ServerConfig) -> asyncio.Server:
    loop = asyncio.get_running_loop()
    if config.socket is not None:
        listener = await loop.create_unix_server(server, config.socket)
        config.socket.chmod(0o660)  # and for the group of its folder, which is nginx's
        return listener
    server.gate = Gate(server, server_tls(folder), room=raise_descriptor_limit())
    return await loop.create_server(server.gate, config.host, config.port)
