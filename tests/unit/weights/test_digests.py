"""Official weights are compared with known or recorded SHA-256 digests."""

import hashlib
import re

import pytest

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
        HostUnfit, match=f"has the SHA-256 {digest(release.body)}, but the official file has {'0' * 64}"
    ):
        resolve(folder, allow_download=True, release_url=release.url, known_digests=known)
    assert files_in(models) == []
    assert len(release.paths) == 1  # another download would give the same file


def test_downloaded_weights_with_the_known_digest_are_used(folder, models, release):
    known = {"yolo11n.pt": (digest(release.body),)}
    path = resolve(folder, allow_download=True, release_url=release.url, known_digests=known)
    assert path.read_bytes() == release.body
    assert not (models / ".digests").exists()


def test_replaced_weights_in_models_dir_are_not_used(folder, models):
    put(models, "yolo11n.pt", weights(b"replaced"))
    with pytest.raises(HostUnfit, match=r"yolo11n\.pt has the SHA-256"):
        resolve(folder, known_digests={"yolo11n.pt": (digest(weights()),)})


def test_default_table_refuses_weights_that_are_not_the_official_file(folder, models):
    put(models, "yolo11n.pt")
    with pytest.raises(HostUnfit, match=KNOWN["yolo11n.pt"][0]):
        resolve(folder, known_digests=KNOWN)


def test_digest_of_unknown_weights_is_recorded_at_first_use(folder, models, release):
    path = resolve(folder, Task.POSE, allow_download=True, release_url=release.url)
    record = models / ".digests" / "yolo11n-pose.pt.sha256"
    assert record.read_text() == f"{digest(release.body)}  yolo11n-pose.pt\n"

    path.unlink()
    release.body = weights(b"another file")
    with pytest.raises(HostUnfit, match=f"the official file has {digest(weights())}"):
        resolve(folder, Task.POSE, allow_download=True, release_url=release.url)
    assert files_in(models) == []


def test_operator_can_accept_another_file(folder, models):
    path = put(models, "yolo11n.pt", weights(b"of the operator"))
    known = {"yolo11n.pt": (digest(weights()),)}
    with pytest.raises(HostUnfit) as refused:
        resolve(folder, known_digests=known)

    record = re.search(r"into (/\S+)", str(refused.value))[1]
    put(models, ".digests/x", b"")
    with open(record, "w") as out:
        out.write(f"{digest(path.read_bytes())}  yolo11n.pt\n")
    assert resolve(folder, known_digests=known) == path


def test_known_digests_belong_to_official_weights():
    names = {f"{name}.pt" for tasks in WEIGHTS.values() for name in tasks.values()}
    digests = [digest for known in KNOWN.values() for digest in known]

    assert KNOWN.keys() <= names
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests)
    assert len(set(digests)) == len(digests)
