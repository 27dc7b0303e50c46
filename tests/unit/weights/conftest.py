"""Fixtures: a model folder, an object store, and a fake release server."""

import threading

import pytest

from tests.unit.weights.release import BUCKET, QUICK, Release
from trainer.storage.local import LocalObjectStore
from trainer.weights.model_folder import ModelFolder


@pytest.fixture
def release():
    server = Release()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.trickle.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def store(tmp_path):
    return LocalObjectStore(tmp_path / "store")


@pytest.fixture
def models(tmp_path):
    return tmp_path / "models"


@pytest.fixture
def folder(models, store):
    def make(*, rows=None, **options) -> ModelFolder:
        given = {"store": store, "artifacts_bucket": BUCKET, "allow_download": False, "policy": QUICK}
        # the files of these tests are not the official files, and their objects have no owner
        given |= {"known_digests": {}, "fine_tune_from": "any"}
        return ModelFolder(models, run_of=(rows or {}).get, **given | options)

    return make
