"""Certificates as TLS itself sees them, and keys as Flower reads them."""

import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_private_key

from federation.certificates import (
    VALIDITY_DAYS,
    create_node_key,
    create_server_certificates,
    load_node_public_key,
    valid_until,
)
from models.refusal import Refusal


def handshake(folder: Path, name: str, *, ca: Path | None = None) -> None:
    """A TLS handshake in memory; raises what a client of `name` would raise."""
    client_context = ssl.create_default_context(cafile=ca or folder / "ca.crt")
    client_context.verify_flags |= ssl.VERIFY_X509_STRICT
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(folder / "server.crt", folder / "server.key")
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server, server_hostname=name)
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    waiting = [client, server]
    for _ in range(10):
        for side in list(waiting):
            try:
                side.do_handshake()
                waiting.remove(side)
            except ssl.SSLWantReadError:
                continue
    assert not waiting


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "study.example.org", "192.0.2.7"])
def test_the_certificate_holds_for_this_machine_and_every_given_host(tmp_path: Path, name: str) -> None:
    create_server_certificates(tmp_path / "c", hosts=["study.example.org", "192.0.2.7", "localhost"])
    handshake(tmp_path / "c", name)


def test_another_name_and_another_authority_are_refused_by_tls(tmp_path: Path) -> None:
    create_server_certificates(tmp_path / "c", hosts=["study.example.org"])
    create_server_certificates(tmp_path / "other", hosts=["study.example.org"])
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(tmp_path / "c", "evil.example.org")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(tmp_path / "c", "study.example.org", ca=tmp_path / "other" / "ca.crt")


def test_the_stated_validity_is_the_real_one(tmp_path: Path) -> None:
    create_server_certificates(tmp_path, hosts=[])
    for name in ("ca.crt", "server.crt"):
        remaining = valid_until(tmp_path / name) - datetime.now(UTC)
        assert timedelta(days=VALIDITY_DAYS, minutes=-5) < remaining <= timedelta(days=VALIDITY_DAYS)


def test_private_keys_are_their_owners_alone(tmp_path: Path) -> None:
    create_server_certificates(tmp_path / "c", hosts=[])
    create_node_key(tmp_path / "node")
    assert mode(tmp_path / "c") == 0o700
    assert {mode(path) for path in (tmp_path / "c" / "ca.key", tmp_path / "c" / "server.key", tmp_path / "node")} == {
        0o600
    }


@pytest.mark.parametrize("existing", ["ca.key", "ca.crt", "server.key", "server.crt"])
def test_nothing_that_exists_is_overwritten(tmp_path: Path, existing: str) -> None:
    (tmp_path / existing).write_text("precious")
    with pytest.raises(Refusal, match="E_KEY_EXISTS"):
        create_server_certificates(tmp_path, hosts=[])
    assert [path.name for path in tmp_path.iterdir()] == [existing]
    assert (tmp_path / existing).read_text() == "precious"


@pytest.mark.parametrize("existing", ["node", "node.pub"])
def test_no_node_key_is_overwritten(tmp_path: Path, existing: str) -> None:
    (tmp_path / existing).write_text("precious")
    with pytest.raises(Refusal, match="E_KEY_EXISTS"):
        create_node_key(tmp_path / "node")
    assert [path.name for path in tmp_path.iterdir()] == [existing]
    assert (tmp_path / existing).read_text() == "precious"


@pytest.mark.parametrize("host", ["https://study.example.org", "study.example.org:8443", "", "a b", "-a", "ü.example"])
def test_what_is_no_host_is_refused_before_anything_is_written(tmp_path: Path, host: str) -> None:
    with pytest.raises(Refusal, match="E_HOST_NAME"):
        create_server_certificates(tmp_path / "c", hosts=["localhost", host])
    assert not (tmp_path / "c").exists()


def test_flower_reads_the_node_key_as_we_enrol_it(tmp_path: Path) -> None:
    from flwr.supercore.primitives.asymmetric import (
        bytes_to_public_key,
        public_key_to_bytes,
        uses_nist_ec_curve,
    )

    public = create_node_key(tmp_path / "keys" / "node")
    private = load_ssh_private_key((tmp_path / "keys" / "node").read_bytes(), None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    enrolled = load_node_public_key(public)
    assert enrolled == public_key_to_bytes(private.public_key())
    assert uses_nist_ec_curve(bytes_to_public_key(enrolled))


def test_what_is_no_node_key_is_refused(tmp_path: Path) -> None:
    create_node_key(tmp_path / "node")
    keys = {
        "rsa": rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key(),
        "p256": ec.generate_private_key(ec.SECP256R1()).public_key(),
    }
    for name, key in keys.items():
        (tmp_path / name).write_bytes(key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
    (tmp_path / "text").write_text("not a key")
    for name in (*keys, "text", "node", "absent"):
        with pytest.raises(Refusal, match="E_PUBLIC_KEY") as refused:
            load_node_public_key(tmp_path / name)
        assert str(tmp_path) not in str(refused.value)
