"""F3: after a power cut, a file is complete, or its damage is detected and the file is created again."""

import hashlib
import io
import json
import uuid
import zipfile
from contextlib import closing

import pytest

from tests.faults.cloud import BUCKET, Cloud, wait_for
from tests.faults.conftest import QUICK
from tests.faults.test_full_disk import completes
from tests.long import long_except
from tests.unit.weights.conftest import release as release  # noqa: PLC0414 - a fixture
from tests.unit.weights.release import YOLO11N, upload, weights
from trainer.core.dataset import Task
from trainer.core.job import Completed, Job, Lease, RunRequest
from trainer.core.model import ModelObject
from trainer.core.ports import Worker
from trainer.core.run_folder import OutputFolder
from trainer.core.stop import StopSignal
from trainer.core.stored_pixels import ImageVersion, trailer
from trainer.datasets.cache.content import ContentCache
from trainer.datasets.cache.pixels import PixelCache
from trainer.jobs.sqlite import SqliteQueue
from trainer.storage.local import LocalObjectStore
from trainer.training.yolo.checkpoint_file import Progress, commit, prepare
from trainer.weights.model_folder import ModelFolder
from trainer.worker.journal import Journal
from trainer.worker.orphaned_journals import orphaned_journals


@pytest.fixture(autouse=True)
def _no_disk_syncs():
    """Override the fixture that skips disk syncs, because the tests in this file need them."""


def cut_power(host, *disks):
    """Cut the power of the host and its disks. Then mount the disks and start the service again."""
    host.kill_all()
    for disk in disks:
        disk.fail()
    for disk in disks:
        disk.restore()
    host.start()


def store_archive(cloud, folder="archived"):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path in sorted(cloud.data.parent.rglob("*")):
            archive.write(path, str(path.relative_to(cloud.data.parent)))
    cloud.storage.put("datasets", f"{folder}/set.zip", packed.getvalue())
    return f"storage:datasets/{folder}/set.zip"


def downloads(cloud):
    return [request for request in cloud.storage.requests if "GET /object/datasets/" in request]


def test_unsynced_file_is_empty_after_power_cut(power_cut):
    """The test disk loses data that was not synced."""
    disk = power_cut("disk")
    (disk.place / "file").write_text("content")

    disk.fail()
    disk.restore()

    assert (disk.place / "file").read_text() == ""


def test_reported_checkpoint_survives_power_cut(power_cut, tmp_path):
    """F3 (I8 I9): the checkpoint and its JSON file are complete."""
    runs = power_cut("runs")
    state, progress = tmp_path / "last.pt", Progress(epoch=3)
    with zipfile.ZipFile(state, "w") as archive:
        archive.writestr("archive/data.pkl", "x" * 100_000)
    saved = commit(prepare(state, runs.place, progress, {}), progress)

    runs.fail()
    runs.restore()

    path = OutputFolder(runs.place).checkpoint(saved.epoch)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == saved.sha256
    assert json.loads(path.with_suffix(".json").read_text())["sha256"] == saved.sha256


def test_recorded_outcome_survives_power_cut(power_cut):
    """F2 F6 (I6 I8): the next process delivers the outcome."""
    home = power_cut("home")
    job = Job(id=str(uuid.uuid4()), request=RunRequest(data_yaml=None), attempt=1)
    outcome = Completed(results={"mAP": 0.5}, trained_model_url="https://x/best.pt")
    lease = Lease(job=job, claim_id=str(uuid.uuid4()), worker_id="w", seconds=60, trusted_until=0)
    with closing(Journal.create(home.place, lease)) as journal:
        journal.record("phase", {"phase": "ending"})
        journal.end(outcome)

    home.fail()
    home.restore()

    [left] = orphaned_journals(home.place, "w", 60)
    with closing(left):
        assert left.outcome == outcome


def test_finished_run_is_published_completely_after_power_cut(cloud, power_cut, host):
    """I8: the training is not repeated, and no artifact is empty."""
    runs = power_cut("runs")
    a = host("a", QUICK, RUNS_DIR=runs.place)
    cloud.storage.fault("delay", on="/1/args.yaml", times=1, seconds=30)
    run_id = cloud.enqueue(epochs=3)
    cloud.wait_phase(run_id, "uploading")
    [folder] = runs.place.glob("train_*")
    written = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    cut_power(a, runs)
    completes(cloud, run_id)

    assert [epoch for epochs in cloud.epochs(run_id).values() for epoch in epochs] == [1, 2, 3]
    for path, name in {
        "output/results.csv": "results.csv",
        "output/args.yaml": "args.yaml",
        "output/weights/best.pt": "best.pt",
    }.items():
        assert cloud.storage.get(BUCKET, f"training_runs/{run_id}/2/{name}") == written[path]
    assert "epoch: epoch=3" in (folder / "run.log").read_text()


@pytest.mark.parametrize("stored", long_except([store_archive, Cloud.store_dataset], store_archive))
def test_fetched_dataset_survives_power_cut(cloud, power_cut, host, stored):
    """I11: the next run uses the dataset without another download. A run on another dataset also completes."""
    data, reference = power_cut("data"), stored(cloud)
    a = host("a", QUICK, DATASET_ROOT=data.place)
    completes(cloud, cloud.enqueue(reference, epochs=1))
    fetched = downloads(cloud)

    cut_power(a, data)
    row = completes(cloud, cloud.enqueue(reference, epochs=1))

    assert row["results"]["dataset"]["images"] == {"train": 4, "val": 2}
    assert downloads(cloud) == fetched
    completes(cloud, cloud.enqueue(store_archive(cloud, "other"), epochs=1))


@pytest.mark.parametrize("stored", long_except([store_archive, Cloud.store_dataset], store_archive))
def test_dataset_is_fetched_again_after_power_cut_during_download(cloud, power_cut, host, stored):
    """I11: the run does not use a partly written file."""
    data, reference = power_cut("data"), stored(cloud)
    a = host("a", QUICK, DATASET_ROOT=data.place)
    cloud.storage.fault("delay", on="GET /object/", times=1000, seconds=0.3)
    run_id = cloud.enqueue(reference, epochs=1)
    wait_for(lambda: len(downloads(cloud)) > (0 if stored is store_archive else 5))
    cloud.storage.faults.clear()

    cut_power(a, data)
    row = completes(cloud, run_id)

    assert row["results"]["dataset"]["images"] == {"train": 4, "val": 2}


def test_damaged_dataset_tree_is_fetched_again(cloud, power_cut, host):
    """I11: the cached tree was not synced, so its recorded size, its list of files and its images are empty."""
    data, reference = power_cut("data"), store_archive(cloud)
    a = host("a", QUICK, DATASET_ROOT=data.place)
    completes(cloud, cloud.enqueue(reference, epochs=1))
    a.wait_idle()
    for path in (data.place / ".cache" / "trees").rglob("*"):
        if path.is_file():
            path.chmod(0o644)
            path.write_bytes(path.read_bytes())

    cut_power(a, data)
    fetched = len(downloads(cloud))
    row = completes(cloud, cloud.enqueue(reference, epochs=1))

    assert row["results"]["dataset"]["images"] == {"train": 4, "val": 2}
    assert len(downloads(cloud)) == fetched + 1


@pytest.mark.parametrize("source", ["release", "bucket"])
def test_fetched_weights_survive_power_cut(power_cut, tmp_path, release, source):
    """Only damaged weights are fetched again."""
    disk, store = power_cut("models"), LocalObjectStore(tmp_path / "store")
    ref = upload(store, tmp_path, "best.pt", weights(b"best"))
    model = ModelObject(ref=ref) if source == "bucket" else YOLO11N
    folder = ModelFolder(
        disk.place, store=store, artifacts_bucket=ref.bucket, run_of=lambda _: None, allow_download=True,
        release_url=release.url, known_digests={}, fine_tune_from="any",
    )  # fmt: skip
    path = folder.resolve(model, Task.DETECT, StopSignal())
    content = path.read_bytes()

    disk.fail()
    disk.restore()
    assert path.read_bytes() == content
    path.unlink()
    path.write_bytes(content)  # not synced
    disk.fail()
    disk.restore()
    assert path.read_bytes() == b""

    assert folder.resolve(model, Task.DETECT, StopSignal()).read_bytes() == content


def test_outcome_in_sqlite_queue_survives_power_cut(power_cut):
    """The journal is removed as soon as the queue has the outcome, so the queue must not lose the outcome."""
    disk = power_cut("home")
    queue = SqliteQueue(disk.place / "queue.db")
    run_id = queue.enqueue(RunRequest(data_yaml="/data"))
    lease = queue.claim(Worker(id="w"), str(uuid.uuid4()), 60)
    queue.finish(lease, Completed(results={"mAP": 0.5}, trained_model_url="https://x/best.pt"), [])

    disk.fail()
    disk.restore()

    assert SqliteQueue(disk.place / "queue.db").get(run_id).status == "completed"


def test_object_in_local_store_survives_power_cut(power_cut, tmp_path):
    disk = power_cut("home")
    store = LocalObjectStore(disk.place / "storage")
    content = weights()
    ref = upload(store, tmp_path, "training_runs/x/1/best.pt", content)

    disk.fail()
    disk.restore()

    store.download(ref, tmp_path / "back.pt", StopSignal())
    assert (tmp_path / "back.pt").read_bytes() == content


def test_cached_pixels_survive_power_cut(power_cut):
    """A training compares only three of the cached files with their images, so all of them must be intact."""
    disk = power_cut("data")
    images = {f"images/train/{number}.jpg": f"1.{number}.3.4.5" for number in range(5)}
    one, two = disk.place / "one", disk.place / "two"
    before = PixelCache(ContentCache(disk.place / ".cache", max_bytes=1 << 30, reserve=0))
    before.link(one, 16, images.items(), None)
    content = {
        place: place.encode() * 100 + trailer((16, 16), ImageVersion(number, 3, 4))
        for number, place in enumerate(images)
    }
    for place in images:
        path = one / "pixels/16-3-fit" / f"{place}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content[place])
    assert before.take_over(one) == 5

    disk.fail()
    disk.restore()

    PixelCache(ContentCache(disk.place / ".cache", max_bytes=1 << 30, reserve=0)).link(two, 16, images.items(), None)
    for place in images:
        assert (disk.place / "pixels/16-3-fit" / f"{place}.npy").read_bytes() == content[place]


@pytest.mark.training
@pytest.mark.timeout(280)
@pytest.mark.long
def test_real_training_on_archive_survives_power_cut(cloud, power_cut, host):
    """F3 (I6 I8 I11): the disk with all files of the service loses its power right after the first run."""
    home, reference = power_cut("home"), store_archive(cloud)
    a = host(
        "a", None, TRAINER_HOME=home.place, DATASET_ROOT=home.place / "datasets", RUNS_DIR=home.place / "runs",
        MODELS_DIR=home.place / "models", FAST_LOADER=1,
    )  # fmt: skip
    settings = {"epochs": 2, "imgsz": 32, "batch": 4, "workers": 0, "compute": "cpu", "plots": False}
    completes(cloud, cloud.enqueue(reference, **settings), seconds=120)

    cut_power(a, home)

    row = completes(cloud, cloud.enqueue(reference, **settings), seconds=120)
    assert row["attempt"] == 1
    assert row["results"]["dataset"]["images"] == {"train": 4, "val": 2}
