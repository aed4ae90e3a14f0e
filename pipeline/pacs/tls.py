"""TLS between a PACS and us: whom we trust, and what we show. Certificates and keys are PEM files."""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from models.refusal import Refusal
from pipeline.site import reasons
from pipeline.site.pacs_settings import read_secret


def as_client(
    folder: Path, *, authority: Path | None, certificate: Path | None = None, key: Path | None = None
) -> ssl.SSLContext:
    """For connections that we open. `folder`: against which the paths are read.

    `authority`: who must have signed the PACS's certificate; None for the public ones. `certificate` and `key`: ours,
    which the PACS may ask for. Raises Refusal E_PACS_FILE.
    """
    with _coded():
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=authority and folder / authority)
        if certificate and key:
            _show(context, folder / certificate, folder / key)
    return context


def as_server(folder: Path, *, authority: Path, certificate: Path, key: Path) -> ssl.SSLContext:
    """For connections that the PACS opens: it must show a certificate of the authority. Raises Refusal E_PACS_FILE."""
    with _coded():
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=folder / authority)
        context.verify_mode = ssl.CERT_REQUIRED
        _show(context, folder / certificate, folder / key)
    return context


def _show(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    read_secret(key)  # nobody else may read it
    context.load_cert_chain(certificate, key, password="")  # without one OpenSSL would ask at the terminal


@contextmanager
def _coded() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        detail = f"certificate, key or ca_certificate: {error.strerror or error}"
        raise Refusal(reasons.PACS_FILE, private=detail) from error
