"""Certificates are checked in real TLS handshakes, and node keys with Flower's own functions."""

import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from federation.enrolment.authority import AUTHORITY_DAYS, NODE_DAYS, SERVER_DAYS, Authority
from federation.enrolment.certificates import (
    client_tls,
    create_node_key,
    create_server_certificates,
    fingerprint,
    load_node_key,
    load_node_public_key,
    open_authority,
    renew_server_certificate,
    trust,
    valid_until,
)
from models.refusal import Refusal

FILES = ("ca.key", "ca.crt", "server.key", "server.crt", "loopback.key", "loopback.crt", "crl.pem")


def shake_hands(client_tls: ssl.SSLContext, server_tls: ssl.SSLContext, name: str) -> ssl.SSLObject:
    """Run a TLS handshake in memory with the host `name`. Returns the server's side, or raises the client's error."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_tls.wrap_bio(to_client, to_server, server_hostname=name)
    server = server_tls.wrap_bio(to_server, to_client, server_side=True)
    waiting = [client, server]
    for _ in range(10):
        for side in list(waiting):
            try:
                side.do_handshake()
                waiting.remove(side)
            except ssl.SSLWantReadError:
                continue
    assert not waiting
    return server


def handshake(folder: Path, name: str, *, ca: Path | None = None, certificate: str = "server") -> None:
    client = trust((ca or folder / "ca.crt").read_text())
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / f"{certificate}.crt", folder / f"{certificate}.key")
    shake_hands(client, server, name)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def group_authority(
    folder: Path,
    *,
    signs: bool = True,
    days: int = 900,
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None = None,
) -> Authority:
    """An authority signed by the root of a hospital group. Its ca.crt and ca.key are in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    root, now = Authority.new(), datetime.now(UTC)
    key = key or ec.generate_private_key(ec.SECP384R1())
    usage = {name: False for name in ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement")}
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Hospital Group, studies")]))
        .issuer_name(root.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1000))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=signs, path_length=0 if signs else None), critical=True)
        .add_extension(
            x509.KeyUsage(
                **usage,
                digital_signature=True,
                key_cert_sign=signs,
                crl_sign=signs,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(root.key, hashes.SHA384())
    )
    (folder / "ca.crt").write_bytes(certificate.public_bytes(Encoding.PEM))
    (folder / "ca.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return Authority(certificate, key)


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "study.example.org", "192.0.2.7"])
def test_server_certificate_is_valid_for_localhost_and_all_given_hosts(tmp_path: Path, name: str) -> None:
    create_server_certificates(tmp_path / "c", hosts=["study.example.org", "192.0.2.7", "localhost"])
    handshake(tmp_path / "c", name)


def test_tls_refuses_another_host_name_and_another_authority(tmp_path: Path) -> None:
    create_server_certificates(tmp_path / "c", hosts=["study.example.org"])
    create_server_certificates(tmp_path / "other", hosts=["study.example.org"])
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(tmp_path / "c", "evil.example.org")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(tmp_path / "c", "study.example.org", ca=tmp_path / "other" / "ca.crt")


def test_superlink_certificate_behind_the_ingress_is_pinned(tmp_path: Path) -> None:
    create_server_certificates(tmp_path / "c", hosts=["study.example.org"])
    handshake(tmp_path / "c", "127.0.0.1", ca=tmp_path / "c" / "loopback.crt", certificate="loopback")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(tmp_path / "c", "127.0.0.1", certificate="loopback")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(tmp_path / "c", "127.0.0.1", ca=tmp_path / "c" / "loopback.crt")


def test_certificates_have_the_documented_validity(tmp_path: Path) -> None:
    create_server_certificates(tmp_path, hosts=[])
    for name, days in (("ca.crt", AUTHORITY_DAYS), ("server.crt", SERVER_DAYS)):
        remaining = valid_until(tmp_path / name) - datetime.now(UTC)
        assert timedelta(days=days, minutes=-5) < remaining <= timedelta(days=days)


def test_private_keys_are_readable_only_by_their_owner(tmp_path: Path) -> None:
    create_server_certificates(tmp_path / "c", hosts=[])
    create_node_key(tmp_path / "node")
    assert mode(tmp_path / "c") == 0o700
    secret = [*(tmp_path / "c").glob("*.key"), tmp_path / "node"]
    assert len(secret) == 4
    assert {mode(path) for path in secret} == {0o600}


@pytest.mark.parametrize("existing", FILES)
def test_existing_server_files_are_not_overwritten(tmp_path: Path, existing: str) -> None:
    (tmp_path / existing).write_text("precious")
    with pytest.raises(Refusal, match="E_KEY_EXISTS"):
        create_server_certificates(tmp_path, hosts=[])
    assert [path.name for path in tmp_path.iterdir()] == [existing]
    assert (tmp_path / existing).read_text() == "precious"


@pytest.mark.parametrize("existing", ["node", "node.pub"])
def test_existing_node_key_is_not_overwritten(tmp_path: Path, existing: str) -> None:
    (tmp_path / existing).write_text("precious")
    with pytest.raises(Refusal, match="E_KEY_EXISTS"):
        create_node_key(tmp_path / "node")
    assert [path.name for path in tmp_path.iterdir()] == [existing]
    assert (tmp_path / existing).read_text() == "precious"


@pytest.mark.parametrize("host", ["https://study.example.org", "study.example.org:8443", "", "a b", "-a", "ü.example"])
def test_invalid_host_is_refused_before_any_file_is_written(tmp_path: Path, host: str) -> None:
    with pytest.raises(Refusal, match="E_HOST_NAME"):
        create_server_certificates(tmp_path / "c", hosts=["localhost", host])
    assert not (tmp_path / "c").exists()


def test_renewal_keeps_key_host_names_and_authority(tmp_path: Path) -> None:
    create_server_certificates(tmp_path, hosts=["study.example.org"])
    before = {name: (tmp_path / name).read_bytes() for name in FILES}
    until = renew_server_certificate(tmp_path)
    after = {name: (tmp_path / name).read_bytes() for name in FILES}
    assert [name for name in FILES if before[name] != after[name]] == ["server.crt"]
    assert until == valid_until(tmp_path / "server.crt")
    handshake(tmp_path, "study.example.org")


# --- the authority of a hospital group --------------------------------------------------------------------


def test_authority_of_a_hospital_group_can_replace_our_own(tmp_path: Path) -> None:
    """The group's authority is signed by a root authority that neither side needs to know."""
    given = group_authority(tmp_path / "group")
    authority = Authority.read(tmp_path / "group" / "ca.crt", tmp_path / "group" / "ca.key")
    create_server_certificates(tmp_path / "c", hosts=["study.example.org"], authority=authority)
    assert (tmp_path / "c" / "ca.crt").read_bytes() == given.certificate.public_bytes(Encoding.PEM)
    handshake(tmp_path / "c", "study.example.org")


def test_certificates_expire_no_later_than_their_authority(tmp_path: Path) -> None:
    authority = group_authority(tmp_path, days=30)
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    for certificate in (authority.node_certificate(key, "north"), authority.server_certificate(key, [])):
        assert certificate.not_valid_after_utc == authority.certificate.not_valid_after_utc


@pytest.mark.parametrize("kind", ["no ca", "ended", "other key", "not pem", "locked", "absent", "ed25519"])
def test_unusable_authority_is_refused(tmp_path: Path, kind: str) -> None:
    group_authority(tmp_path, signs=kind != "no ca", days=-1 if kind == "ended" else 900)
    key = tmp_path / "ca.key"
    if kind == "other key":
        group_authority(tmp_path / "other")
        key = tmp_path / "other" / "ca.key"
    elif kind == "not pem":
        (tmp_path / "ca.crt").write_text("hello")
    elif kind == "locked":
        locked = BestAvailableEncryption(b"secret")
        private = ec.generate_private_key(ec.SECP384R1())
        key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, locked))
    elif kind == "absent":
        key.unlink()
    elif kind == "ed25519":
        key.write_bytes(_ed25519())
    with pytest.raises(Refusal, match="E_AUTHORITY") as refused:
        Authority.read(tmp_path / "ca.crt", key)
    assert str(tmp_path) not in str(refused.value)


def _ed25519() -> bytes:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def test_authority_with_an_rsa_key_can_sign(tmp_path: Path) -> None:
    authority = group_authority(tmp_path, key=rsa.generate_private_key(public_exponent=65537, key_size=3072))
    create_server_certificates(tmp_path / "c", hosts=[], authority=authority)
    handshake(tmp_path / "c", "localhost")


# --- the certificate of a node ----------------------------------------------------------------------------


def node_files(folder: Path, authority: Authority, *, name: str = "north", now: datetime | None = None) -> Path:
    """Write a node's key and its certificate (node, node.pub and node.crt) to `folder`."""
    key = load_node_key(create_node_key(folder / "node").with_suffix(""))
    certificate = authority.node_certificate(key.public_key(), name, now=now)
    (folder / "node.crt").write_bytes(certificate.public_bytes(Encoding.PEM))
    return folder


def test_node_certificate_conforms_to_rfc_5280(tmp_path: Path) -> None:
    authority, key = Authority.new(), ec.generate_private_key(ec.SECP384R1()).public_key()
    certificate = authority.node_certificate(key, "north")
    certificate.verify_directly_issued_by(authority.certificate)
    assert certificate.subject.rfc4514_string() == "CN=north"
    assert certificate.public_key() == key
    assert certificate.not_valid_after_utc - datetime.now(UTC) <= timedelta(days=NODE_DAYS)
    extensions = certificate.extensions
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    usage = extensions.get_extension_for_class(x509.KeyUsage).value
    assert (usage.digital_signature, usage.key_cert_sign, usage.crl_sign) == (True, False, False)
    own = authority.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    assert extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier == own


def test_client_and_server_verify_each_other(tmp_path: Path) -> None:
    create_server_certificates(tmp_path / "c", hosts=[])
    node = node_files(tmp_path / "site", open_authority(tmp_path / "c"))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "c" / "server.crt", tmp_path / "c" / "server.key")
    server.load_verify_locations(tmp_path / "c" / "ca.crt")
    server.verify_mode = ssl.CERT_REQUIRED
    server.verify_flags |= ssl.VERIFY_X509_STRICT
    client = client_tls(tmp_path / "c" / "ca.crt", certificate=node / "node.crt", private_key=node / "node")
    shown = shake_hands(client, server, "localhost").getpeercert(binary_form=True)
    certificate = x509.load_pem_x509_certificate((node / "node.crt").read_bytes())
    assert shown == certificate.public_bytes(Encoding.DER)
    assert sorted(path.name for path in node.iterdir()) == ["node", "node.crt", "node.pub"], "no key is left behind"


def test_mismatched_node_key_and_certificate_are_refused(tmp_path: Path) -> None:
    create_server_certificates(tmp_path / "c", hosts=[])
    ours = node_files(tmp_path / "ours", open_authority(tmp_path / "c"))
    theirs = node_files(tmp_path / "theirs", open_authority(tmp_path / "c"))
    ca = tmp_path / "c" / "ca.crt"
    with pytest.raises(Refusal, match="E_NODE_CERTIFICATE"):
        client_tls(ca, certificate=theirs / "node.crt", private_key=ours / "node")
    with pytest.raises(Refusal, match="E_NODE_FILE: the node's certificate"):
        client_tls(ca, certificate=ours / "absent", private_key=ours / "node")
    with pytest.raises(Refusal, match="E_NODE_FILE: the node's key"):
        client_tls(ca, certificate=ours / "node.crt", private_key=ours / "node.pub")
    (ours / "node.crt").write_bytes(b"\xff\x00")
    with pytest.raises(Refusal, match="E_NODE_CERTIFICATE"):
        client_tls(ca, certificate=ours / "node.crt", private_key=ours / "node")


def test_openssl_enforces_the_revocation_list(tmp_path: Path) -> None:
    create_server_certificates(tmp_path / "c", hosts=[])
    authority = open_authority(tmp_path / "c")
    node = node_files(tmp_path / "site", authority)
    certificate = x509.load_pem_x509_certificate((node / "node.crt").read_bytes())
    client = client_tls(tmp_path / "c" / "ca.crt", certificate=node / "node.crt", private_key=node / "node")

    def server() -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "c" / "server.crt", tmp_path / "c" / "server.key")
        context.load_verify_locations(tmp_path / "c" / "ca.crt")
        context.load_verify_locations(tmp_path / "c" / "crl.pem")
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
        return context

    shake_hands(client, server(), "localhost")
    crl = authority.revocation_list({certificate.serial_number: datetime.now(UTC)})
    assert crl.is_signature_valid(authority.certificate.public_key())
    (tmp_path / "c" / "crl.pem").write_bytes(crl.public_bytes(Encoding.PEM))
    with pytest.raises(ssl.SSLCertVerificationError, match="revoked"):
        shake_hands(client, server(), "localhost")


def test_fingerprint_is_the_sha256_of_the_der_certificate(tmp_path: Path) -> None:
    import hashlib

    create_server_certificates(tmp_path, hosts=[])
    der = ssl.PEM_cert_to_DER_cert((tmp_path / "ca.crt").read_text())
    certificate = x509.load_der_x509_certificate(der)
    assert fingerprint(certificate) == hashlib.sha256(der).hexdigest()


# --- the key of a node ------------------------------------------------------------------------------------


def test_flower_and_enrolment_read_the_same_public_key(tmp_path: Path) -> None:
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


def test_invalid_node_public_key_is_refused(tmp_path: Path) -> None:
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
