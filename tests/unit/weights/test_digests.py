"""Official weights are compared with known or recorded SHA-256 digests."""

import hashlib
import re
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.unit.weights.release import YOLO11N, files_in, put, weights
from trainer.core.dataset import Task
from trainer.core.errors import HostUnfit
from trainer.core.model_catalog import WEIGHTS
from trainer.core.stop import StopSignal
from trainer.weights.digests import KNOWN


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def resolve(folder, task=Task.DETECT, **options):
    return folder(**options).resolve(YOLO11N, task, StopSignal())


def test_downloaded_weights_with_a_wrong_digest_are_not_kept(folder, models, release):
    known = {"yolo11n.pt": ("0" * 64,)}
    with pytest.raises(
        HostUnfit, match=f"has the SHA-256 {digest(release.body)}, but the published file has {'0' * 64}"
    ):
        resolve(folder, allow_download=True, release_url=release.url, known_digests=known)
    assert files_in(models) == []
    assert len(release.paths) == 1  # another download would give the same file


def test_downloaded_weights_with_the_known_digest_are_used(folder, models, release):
    known = {"yolo11n.pt": (digest(release.body),)}
    path = resolve(folder, allow_download=True, release_url=release.url, known_digests=known)
    assert path.read_bytes() == release.body
    assert digest(release.body) in (models / ".digests" / "yolo11n.pt.sha256").read_text()


def test_weights_that_are_replaced_after_their_first_use_are_not_used(folder, models):
    known = {"yolo11n.pt": (digest(weights()),)}
    put(models, "yolo11n.pt", weights())
    resolve(folder, known_digests=known)
    put(models, "yolo11n.pt", weights(b"replaced"))

    with pytest.raises(HostUnfit, match=f"but had {digest(weights())} at its first use"):
        resolve(folder, known_digests=known)


def test_file_of_the_operator_with_an_official_name_is_used_and_logged(folder, models):
    path = put(models, "yolo11n.pt")

    with capture_logs() as logs:
        assert resolve(folder, known_digests=KNOWN) == path
        resolve(folder, known_digests=KNOWN)

    assert [entry["event"] for entry in logs] == ["weights with an official name are not the published file"]


def test_digest_of_unknown_weights_is_recorded_at_first_use(folder, models, release):
    path = resolve(folder, Task.POSE, allow_download=True, release_url=release.url)
    record = models / ".digests" / "yolo11n-pose.pt.sha256"
    assert record.read_text() == f"{digest(release.body)}  yolo11n-pose.pt\n"

    path.unlink()
    release.body = weights(b"another file")
    with pytest.raises(HostUnfit, match=f"but had {digest(weights())} at its first use"):
        resolve(folder, Task.POSE, allow_download=True, release_url=release.url)
    assert files_in(models) == []


def test_operator_can_replace_a_file(folder, models):
    put(models, "yolo11n.pt")
    resolve(folder)
    path = put(models, "yolo11n.pt", weights(b"of the operator"))
    with pytest.raises(HostUnfit) as refused:
        resolve(folder)

    Path(re.search(r"remove (/\S+)", str(refused.value))[1]).unlink()
    assert resolve(folder) == path


def test_known_digests_belong_to_official_weights():
    names = {f"{name}.pt" for tasks in WEIGHTS.values() for name in tasks.values()}
    digests = [digest for known in KNOWN.values() for digest in known]

    assert KNOWN.keys() <= names
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests)
    assert len(set(digests)) == len(digests)
