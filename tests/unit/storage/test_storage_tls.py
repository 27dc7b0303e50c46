"""The store over TLS, as in every hosted project. The client waits in steps of 0.5 s. This must not break TLS."""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
import ssl
import threading
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.storage_server import StorageServer
from trainer.core.dataset import ObjectRef
from trainer.core.errors import Unavailable
from trainer.core.retry import RetryPolicy
from trainer.core.stop import Stopped, StopReason, StopSignal
from trainer.remote.stoppable import tls_context
from trainer.remote.storage_api import StorageApi
from trainer.storage.supabase import SupabaseObjectStore

MIB = 1024 * 1024
REF = ObjectRef(bucket="data", key="best.pt")


@pytest.fixture
def certificate(tmp_path):
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now, day = dt.datetime.now(dt.UTC), dt.timedelta(days=1)
    alternative = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now - day, now + day)
        .add_extension(alternative, critical=True)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    path = tmp_path / "certificate.pem"
    path.write_bytes(certificate.public_bytes(pem) + key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    return path


@pytest.fixture
def server(certificate):
    server = StorageServer({"data": False})
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server._http.socket = context.wrap_socket(server._http.socket, server_side=True)
    server.url = server.url.replace("http:", "https:")
    with server:
        yield server


@pytest.fixture
def store(server, certificate, tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    tls_context.cache_clear()  # the next client reads the certificate of the test
    store = SupabaseObjectStore(StorageApi(server.url, "service-key"), notes=tmp_path / "notes", stop=StopSignal())
    yield store
    store.close()
    tls_context.cache_clear()


def test_large_objects_are_transferred_over_slow_connection(server, store, tmp_path):
    content = os.urandom(9 * MIB)
    (tmp_path / "best.pt").write_bytes(content)
    server.fault("slow", on="PATCH", rate=4e6)  # a write takes longer than 0.5 s
    server.fault("delay", on="GET /object/data", seconds=0.7)
    store.upload(tmp_path / "best.pt", REF, StopSignal())
    store.download(REF, tmp_path / "back", StopSignal())
    assert (tmp_path / "back").read_bytes() == content


def test_stop_ends_transfer(server, store, tmp_path):
    (tmp_path / "best.pt").write_bytes(bytes(9 * MIB))
    server.fault("slow", on="PATCH", rate=300_000.0)
    stop = StopSignal()
    timer = threading.Timer(0.3, stop.set, [StopReason.CANCELED])
    timer.start()
    began = time.monotonic()
    with pytest.raises(Stopped):
        store.upload(tmp_path / "best.pt", REF, stop)
    assert time.monotonic() - began < 15
    timer.join()


def test_untrusted_certificate_is_reported(server, tmp_path):
    policy = RetryPolicy(tries=1)
    api = StorageApi(server.url, "service-key")
    store = SupabaseObjectStore(api, notes=tmp_path / "notes", stop=StopSignal(), policy=policy)
    with pytest.raises(Unavailable, match="certificate verify failed"):
        store.stat(REF)
    store.close()
