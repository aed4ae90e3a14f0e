"""TLS contexts for connections with the hospital's systems. Certificates and keys are PEM files."""

import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from models.refusal import Refusal
from pipeline.site import reasons
from pipeline.site.pacs_settings import read_secret

_ALERT_SECONDS = 2.0


def as_client(
    folder: Path, *, authority: Path | None, certificate: Path | None = None, key: Path | None = None
) -> ssl.SSLContext:
    """Create the context for connections that we open. `folder`: the base of relative paths.

    `authority`: must have signed the server's certificate; None for the public authorities. `certificate` and `key`:
    our own, if the server requires them. Raises Refusal E_PACS_FILE.
    """
    with _coded():
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=authority and folder / authority)
        if certificate and key:
            _show(context, folder / certificate, folder / key)
    return context


def ends_with_alert(context: ssl.SSLContext, host: str, port: int) -> bool:
    """Whether a server ends a TLS connection with an alert: it does not accept our certificate, or demands one.

    With TLS 1.3 the alert comes after our handshake. If we had sent something by then, a reset could hide it; so this
    connection sends nothing, and waits for the alert for at most `_ALERT_SECONDS`.
    """
    try:
        with (
            socket.create_connection((host, port), timeout=_ALERT_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=host) as connection,
        ):
            connection.recv(1)
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "")
    except OSError:
        return False
    return False


def as_server(folder: Path, *, authority: Path, certificate: Path, key: Path) -> ssl.SSLContext:
    """Create the context for connections from others, who must show a certificate of the authority.

    Raises Refusal E_PACS_FILE.
    """
    with _coded():
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=folder / authority)
        context.verify_mode = ssl.CERT_REQUIRED
        _show(context, folder / certificate, folder / key)
    return context


def _show(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    read_secret(key)  # nobody else may read it
    context.load_cert_chain(certificate, key, password="")  # with None OpenSSL would ask at the terminal


@contextmanager
def _coded() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        detail = f"certificate, key or ca_certificate: {error.strerror or error}"
        raise Refusal(reasons.PACS_FILE, private=detail) from error
