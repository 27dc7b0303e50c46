"""A TLS connection goes to the checked address, but the certificate must match the host name of the URL."""

import datetime as dt
import os
import ssl
import threading
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.web_server import body, endless, web_server
from trainer.core.errors import DatasetError
from trainer.core.retry import RetryPolicy
from trainer.core.stop import Stopped, StopReason, StopSignal
from trainer.remote.web import GuardedClient


@pytest.fixture
def certificate(tmp_path):
    """Return a self-signed certificate for data.example."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now, day = dt.datetime.now(dt.UTC), dt.timedelta(days=1)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now - day, now + day)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("data.example")]), critical=True)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    path = tmp_path / "certificate.pem"
    path.write_bytes(made.public_bytes(pem) + key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    return path


@pytest.fixture
def names():
    return []


@pytest.fixture
def server(certificate, names):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    context.sni_callback = lambda _socket, name, _context: names.append(name)
    with web_server(context) as started:
        yield started


@pytest.fixture
def make_client(server, certificate):
    clients = []

    def make(host, *, trusted=True):
        clients.append(
            GuardedClient(
                allowed_hosts=[f"{host}:{server.port}"],
                resolve=lambda *_: ["127.0.0.1"],
                policy=RetryPolicy(tries=1),
                ssl_context=ssl.create_default_context(cafile=certificate) if trusted else None,
            ),
        )
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def test_tls_uses_and_checks_the_host_name(server, make_client, names, tmp_path):
    content = os.urandom(3 << 20)
    server.pages["/a"] = body(content)
    make_client("data.example").download(f"https://data.example:{server.port}/a", tmp_path / "a", StopSignal())
    assert (tmp_path / "a").read_bytes() == content
    assert names == ["data.example"]


@pytest.mark.parametrize(("host", "trusted"), [("other.example", True), ("data.example", False)])
def test_wrong_or_untrusted_certificate_is_rejected(server, make_client, tmp_path, host, trusted):
    server.pages["/a"] = body(b"x")
    with pytest.raises(DatasetError, match="no valid certificate"):
        make_client(host, trusted=trusted).download(f"https://{host}:{server.port}/a", tmp_path / "a", StopSignal())
    assert server.asked == []


def test_stop_ends_download_over_tls_immediately(server, make_client, tmp_path):
    server.pages["/a"] = endless
    stop = StopSignal()
    threading.Timer(0.3, stop.set, [StopReason.CANCELED]).start()
    began = time.monotonic()
    with pytest.raises(Stopped):
        make_client("data.example").download(f"https://data.example:{server.port}/a", tmp_path / "a", stop)
    assert time.monotonic() - began < 3
