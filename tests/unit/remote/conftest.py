"""Fixtures: a web server, and clients that check host names and addresses."""

import pytest

from tests.web_server import web_server
from trainer.core.retry import RetryPolicy
from trainer.remote.web import GuardedClient

QUICK = RetryPolicy(tries=2, first_wait=0.01, longest_wait=0.02, total_seconds=5)


@pytest.fixture
def server():
    with web_server() as started:
        yield started


@pytest.fixture
def make_client():
    clients = []

    def make(**options):
        clients.append(GuardedClient(**{"policy": QUICK, **options}))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def client(server, make_client):
    return make_client(allowed_hosts=[server.host])
