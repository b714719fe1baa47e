"""CertificateAuthority: one suite for the fake, the local CA and a real Vault, with real TLS."""

from __future__ import annotations

import re
import socket
import ssl
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from node_agent.membership import SERVER_NAME
from reconciler.adapters.ca_local import LocalCa
from reconciler.adapters.clock import SystemClock
from reconciler.adapters.secrets_local import LocalSecrets
from reconciler.errors import Refused
from reconciler.ports import Certificate, CertificateAuthority, Secret
from tests.fakes.ca import FakeCa
from tests.fakes.clock import FakeClock
from tests.fakes.secrets import FakeSecrets

DAY_S = 24 * 3600
AGENT_NAME = "node-1.node.gpuaas.internal"

Key = Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass
class Authority:
    """A CA, and how to get a certificate from it that has ended."""

    ca: CertificateAuthority
    ended: Callable[[Callable[[float], Certificate]], Certificate]


def real_time() -> FakeClock:
    """Whoever shakes hands looks at the host's clock."""
    return FakeClock(SystemClock().now_ms())


@pytest.fixture(params=["fake", "local", "vault"])
def authority(request: pytest.FixtureRequest, tmp_path: Path) -> Authority:
    if request.param == "vault":
        return Authority(request.getfixturevalue("vault_ca"), _wait_for_its_end)
    clock = real_time()
    local = request.param == "local"
    ca = LocalCa(LocalSecrets(tmp_path / "secrets"), clock) if local else FakeCa(clock)
    ca.root()

    def ended(sign: Callable[[float], Certificate]) -> Certificate:
        clock.advance(-120_000)
        return sign(60)

    return Authority(ca, ended)


def _wait_for_its_end(sign: Callable[[float], Certificate]) -> Certificate:
    found = sign(1)
    time.sleep(max(0.0, found.not_after_ms / 1000 - time.time()) + 1)
    return found


@pytest.fixture
def ca(authority: Authority) -> CertificateAuthority:
    return authority.ca


def csr_of(key: Key, *extensions: x509.ExtensionType, name: str = "anything") -> str:
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=True)
    algorithm = None if isinstance(key, Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, algorithm).public_bytes(Encoding.PEM).decode()


def leaf(certificate: Certificate) -> x509.Certificate:
    return x509.load_pem_x509_certificates(certificate.pem.encode())[0]


def root_of(ca: CertificateAuthority) -> x509.Certificate:
    return x509.load_pem_x509_certificate(ca.root().encode())


def names_in(certificate: x509.Certificate) -> list[str]:
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert len([*found]) == len(found.get_values_for_type(x509.DNSName))
    return found.get_values_for_type(x509.DNSName)


def usage_of(certificate: x509.Certificate) -> list[x509.ObjectIdentifier]:
    return [*certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value]


class TestRoot:
    def test_it_is_made_once(self, ca: CertificateAuthority) -> None:
        with ThreadPoolExecutor(4) as pool:
            roots = set(pool.map(lambda _: ca.root(), range(8)))
        assert roots == {ca.root()}

    def test_it_signs_certificates_for_years_and_nothing_below_it_does(
        self, ca: CertificateAuthority
    ) -> None:
        root = root_of(ca)
        root.verify_directly_issued_by(root)
        basic = root.extensions.get_extension_for_class(x509.BasicConstraints).value
        assert (basic.ca, basic.path_length) == (True, 0)
        assert root.not_valid_after_utc > datetime.now(UTC) + timedelta(days=3000)


class TestCertificates:
    def test_of_an_agent(self, ca: CertificateAuthority) -> None:
        key, now = Ed25519PrivateKey.generate(), datetime.now(UTC)
        issued = ca.sign_agent("node-1", csr_of(key), DAY_S)
        found, root = leaf(issued), root_of(ca)
        assert names_in(found) == [AGENT_NAME]
        assert usage_of(found) == [ExtendedKeyUsageOID.CLIENT_AUTH]
        assert found.public_key() == key.public_key()
        found.verify_directly_issued_by(root)
        assert found.not_valid_before_utc <= now
        assert int(found.not_valid_after_utc.timestamp() * 1000) == issued.not_after_ms
        assert timedelta(0) < found.not_valid_after_utc - now <= timedelta(seconds=DAY_S + 60)

    def test_of_the_control_plane(self, ca: CertificateAuthority) -> None:
        found = leaf(ca.sign_server(csr_of(Ed25519PrivateKey.generate()), DAY_S))
        assert names_in(found) == [SERVER_NAME]
        assert usage_of(found) == [ExtendedKeyUsageOID.SERVER_AUTH]

    def test_it_may_sign_nothing_but_handshakes(self, ca: CertificateAuthority) -> None:
        extensions = leaf(ca.sign_agent("node-1", csr_of(ec_key()), DAY_S)).extensions
        basic = extensions.get_extension_for_class(x509.BasicConstraints)
        assert (basic.value.ca, basic.critical) == (False, True)
        usage = extensions.get_extension_for_class(x509.KeyUsage).value
        assert usage.digital_signature
        assert (usage.key_cert_sign, usage.crl_sign) == (False, False)
        own = root_of(ca).extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        above = extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
        assert above.key_identifier == own.digest
        extensions.get_extension_for_class(x509.SubjectKeyIdentifier)

    def test_what_else_the_request_asks_for_counts_for_nothing(
        self, ca: CertificateAuthority
    ) -> None:
        csr = csr_of(
            ec_key(),
            x509.SubjectAlternativeName([x509.DNSName(SERVER_NAME), x509.DNSName("a.example")]),
            x509.BasicConstraints(ca=True, path_length=None),
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]),
            name=SERVER_NAME,
        )
        found = leaf(ca.sign_agent("node-1", csr, DAY_S))
        assert names_in(found) == [AGENT_NAME]
        assert usage_of(found) == [ExtendedKeyUsageOID.CLIENT_AUTH]
        assert not found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        assert SERVER_NAME not in found.subject.rfc4514_string()

    def test_each_has_a_number_of_its_own(self, ca: CertificateAuthority) -> None:
        csr = csr_of(ec_key())
        issued = [ca.sign_agent("node-1", csr, DAY_S) for _ in range(3)]
        for one in issued:
            assert re.fullmatch(r"[0-9a-f]{2}(:[0-9a-f]{2}){7,19}", one.serial)
            assert int(one.serial.replace(":", ""), 16) == leaf(one).serial_number
        assert len({one.serial for one in issued}) == 3

    def test_none_outlives_the_root(self, ca: CertificateAuthority) -> None:
        found = leaf(ca.sign_agent("node-1", csr_of(ec_key()), 100 * 365 * DAY_S))
        assert found.not_valid_after_utc <= root_of(ca).not_valid_after_utc

    @pytest.mark.parametrize(
        "key",
        [
            ec.generate_private_key(ec.SECP256R1()),
            ec.generate_private_key(ec.SECP384R1()),
            rsa.generate_private_key(65537, 2048),
            Ed25519PrivateKey.generate(),
        ],
        ids=["P-256", "P-384", "RSA 2048", "ed25519"],
    )
    def test_keys_that_are_certified(self, ca: CertificateAuthority, key: Key) -> None:
        found = leaf(ca.sign_agent("n" * 63, csr_of(key), DAY_S))
        assert found.public_key() == key.public_key()

    def test_revoking_may_be_done_again(self, ca: CertificateAuthority) -> None:
        issued = ca.sign_agent("node-1", csr_of(ec_key()), DAY_S)
        for serial in (issued.serial, issued.serial, "00:11:22", "", "../x", "7" * 200):
            ca.revoke(serial)


def ec_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _tampered() -> str:
    """A good request, with one bit of its signature turned over."""
    csr = x509.load_pem_x509_csr(csr_of(ec_key()).encode())
    raw = bytearray(csr.public_bytes(Encoding.DER))
    raw[-1] ^= 1
    return x509.load_der_x509_csr(bytes(raw)).public_bytes(Encoding.PEM).decode()


def _of_another_key() -> str:
    """A key that whoever sends it does not have, in a request signed with his own."""
    wanted, own = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    raw = x509.load_pem_x509_csr(csr_of(own).encode()).public_bytes(Encoding.DER)
    put = raw.replace(own.public_key().public_bytes_raw(), wanted.public_key().public_bytes_raw())
    return x509.load_der_x509_csr(put).public_bytes(Encoding.PEM).decode()


class TestRequests:
    @pytest.mark.parametrize(
        ("csr", "said"),
        [
            ("", "it is no certificate signing request in PEM"),
            ("-----BEGIN CERTIFICATE REQUEST-----\n\0\n", "it is no certificate signing request"),
            ("ä" * 100, "it is no certificate signing request in PEM"),
            ("x" * 8193, "it is longer than 8192 characters"),
            (_tampered(), "its signature does not hold"),
            (_of_another_key(), "its signature does not hold: who sent it may not have the key"),
            (csr_of(rsa.generate_private_key(65537, 1024)), "neither ed25519, ECDSA P-256"),
            (csr_of(ec.generate_private_key(ec.SECP224R1())), "neither ed25519, ECDSA P-256"),
            (csr_of(ec.generate_private_key(ec.SECP521R1())), "neither ed25519, ECDSA P-256"),
        ],
        ids=[
            "empty", "garbage", "not ASCII", "too long", "tampered", "another's key", "RSA 1024",
            "P-224", "P-521",
        ],
    )  # fmt: skip
    def test_one_that_is_refused(self, ca: CertificateAuthority, csr: str, said: str) -> None:
        said = f"csr_refused: .*{re.escape(said)}"
        with pytest.raises(Refused, match=said):
            ca.sign_agent("node-1", csr, DAY_S)
        with pytest.raises(Refused, match=said):
            ca.sign_server(csr, DAY_S)

    @pytest.mark.parametrize("node", ["", "a.b", "*", "A", "-a", "a" * 64, "a\n", "ä", "a,b"])
    def test_for_what_is_no_node(self, ca: CertificateAuthority, node: str) -> None:
        with pytest.raises(Refused, match=r"csr_refused: it is for .* which is no node's name"):
            ca.sign_agent(node, csr_of(ec_key()), DAY_S)


# --- handshakes ----------------------------------------------------------------------------------


@dataclass
class Holder:
    """A key, and certificates for it on file."""

    folder: Path
    name: str
    key: ec.EllipticCurvePrivateKey

    @property
    def csr(self) -> str:
        return csr_of(self.key)

    def load(self, context: ssl.SSLContext, certificate: Certificate) -> None:
        place = self.folder / f"{self.name}.pem"
        pem = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        place.write_text(certificate.pem + pem)
        context.load_cert_chain(place)


def context_of(ca: CertificateAuthority, protocol: ssl._SSLMethod) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=ca.root())
    return context


def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> str:
    """TLS over loopback: `done`, or why the one who refused did so."""
    said: list[str] = []
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        plain, _ = listening.accept()
        try:
            with plain, server.wrap_socket(plain, server_side=True) as found:
                found.sendall(b"hello")
        except (ssl.SSLError, ConnectionError) as error:
            said.append(f"server: {error}")

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with (
            socket.create_connection(listening.getsockname(), timeout=30) as plain,
            client.wrap_socket(plain, server_hostname=name) as found,
        ):
            # Only what comes after the handshake tells a client that it was believed.
            answer = found.recv(5)
            assert (answer, found.version()) == (b"hello", "TLSv1.3")
    except (ssl.SSLError, ConnectionError, AssertionError) as error:
        said.append(f"client: {error}")
    thread.join(30)
    listening.close()
    return "\n".join(said) or "done"


@dataclass
class Both:
    """Two who know the CA, with certificates still to be loaded."""

    ca: CertificateAuthority
    server: ssl.SSLContext
    client: ssl.SSLContext
    control_plane: Holder
    agent: Holder

    def certified(self) -> Both:
        self.control_plane.load(self.server, self.ca.sign_server(self.control_plane.csr, DAY_S))
        self.agent.load(self.client, self.ca.sign_agent("node-1", self.agent.csr, DAY_S))
        return self

    def shake_hands(self, name: str = SERVER_NAME) -> str:
        return shake_hands(self.server, self.client, name)


@pytest.fixture
def both(ca: CertificateAuthority, tmp_path: Path) -> Both:
    return Both(
        ca,
        context_of(ca, ssl.PROTOCOL_TLS_SERVER),
        context_of(ca, ssl.PROTOCOL_TLS_CLIENT),
        Holder(tmp_path, "control-plane", ec_key()),
        Holder(tmp_path, "agent", ec_key()),
    )


class TestHandshakes:
    def test_agent_and_control_plane_believe_each_other(self, both: Both) -> None:
        assert both.certified().shake_hands() == "done"

    def test_an_agent_is_no_control_plane(self, both: Both) -> None:
        both.certified()
        both.agent.load(both.server, both.ca.sign_agent("node-1", both.agent.csr, DAY_S))
        assert "client: [SSL: CERTIFICATE_VERIFY_FAILED]" in both.shake_hands()
        assert "unsuitable certificate purpose" in both.shake_hands(AGENT_NAME)

    def test_the_control_plane_is_no_agent(self, both: Both) -> None:
        both.certified()
        certificate = both.ca.sign_server(both.control_plane.csr, DAY_S)
        both.control_plane.load(both.client, certificate)
        said = both.shake_hands()
        assert "server: [SSL: CERTIFICATE_VERIFY_FAILED]" in said
        assert "unsuitable certificate purpose" in said

    def test_nobody_without_a_certificate(self, both: Both) -> None:
        both.certified()
        both.client = context_of(both.ca, ssl.PROTOCOL_TLS_CLIENT)
        assert "server: [SSL: PEER_DID_NOT_RETURN_A_CERTIFICATE]" in both.shake_hands()

    def test_not_under_another_name(self, both: Both) -> None:
        both.certified()
        for name in ("other.gpuaas.internal", "127.0.0.1", AGENT_NAME):
            assert "certificate is not valid for" in both.shake_hands(name)

    def test_not_once_it_has_ended(self, authority: Authority, both: Both) -> None:
        both.certified()
        agent, plane = both.agent, both.control_plane
        agent.load(
            both.client,
            authority.ended(lambda ttl_s: both.ca.sign_agent("node-1", agent.csr, ttl_s)),
        )
        assert "certificate has expired" in both.shake_hands()
        both.certified()
        plane.load(
            both.server, authority.ended(lambda ttl_s: both.ca.sign_server(plane.csr, ttl_s))
        )
        assert "certificate has expired" in both.shake_hands()

    def test_not_by_another_ca(self, both: Both) -> None:
        both.certified()
        other = FakeCa(real_time())
        both.agent.load(both.client, other.sign_agent("node-1", both.agent.csr, DAY_S))
        assert "server: [SSL: CERTIFICATE_VERIFY_FAILED]" in both.shake_hands()


# --- the local CA alone --------------------------------------------------------------------------


def test_the_root_outlives_the_process_and_what_was_revoked_stays_so(tmp_path: Path) -> None:
    first = LocalCa(LocalSecrets(tmp_path / "s"), FakeClock())
    serial = first.sign_agent("node-1", csr_of(ec_key()), DAY_S).serial
    first.revoke(serial)
    again = LocalCa(LocalSecrets(tmp_path / "s"), FakeClock())
    assert again.root() == first.root()
    assert again.revoked() == (serial,)


def test_the_root_signs_for_nobody_else(tmp_path: Path) -> None:
    ca = LocalCa(LocalSecrets(tmp_path / "s"), FakeClock())
    found = root_of(ca).extensions.get_extension_for_class(x509.NameConstraints)
    assert found.critical
    assert found.value.permitted_subtrees == [x509.DNSName("gpuaas.internal")]


def test_a_root_that_has_ended_signs_nothing() -> None:
    ca = FakeCa(clock := FakeClock())
    ca.root()
    clock.advance(3650 * DAY_S * 1000)
    with pytest.raises(Refused, match=r"pki/root: ca_ended: .*join every node again"):
        ca.sign_agent("node-1", csr_of(ec_key()), DAY_S)


@pytest.mark.parametrize("damage", ["", "no PEM", "cut"])
def test_a_damaged_root_is_not_replaced(damage: str) -> None:
    kept = FakeSecrets()
    whole = LocalCa(kept, FakeClock())
    whole.root()
    text = kept.secrets["pki/root"].reveal()[:200] if damage == "cut" else damage
    kept.secrets["pki/root"] = Secret(text)
    with pytest.raises(Refused, match=r"pki/root: ca_damaged: .*restore the secret"):
        LocalCa(kept, FakeClock()).root()
