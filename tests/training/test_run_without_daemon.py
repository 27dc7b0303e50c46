"""A single run, executed with the classes of the service except `Daemon`, which claims runs."""

import uuid

import pytest
from drawn import draw

from trainer.core.dataset import Task
from trainer.core.job import Completed, RunRequest, Status
from trainer.core.ports import Delivery
from trainer.core.stop import StopSignal
from trainer.settings import Settings
from trainer.wiring.backend import open_backend
from trainer.wiring.host import build_self_test, describe_worker, slot_devices
from trainer.wiring.service import open_run_parts
from trainer.worker.execution import Execution
from trainer.worker.health import Health
from trainer.worker.liveness import Liveness
from trainer.worker.slots import Slots

pytestmark = [pytest.mark.training, pytest.mark.long]


def test_run_without_daemon_returns_its_outcome(tmp_path):
    settings, stop = Settings(trainer_home=tmp_path / "home", slots=1, warm_start=False), StopSignal()
    data = draw(tmp_path / "data", Task.DETECT).data
    request = RunRequest(data_yaml=str(data), base_model="yolo11n.yaml", configuration={"epochs": 1, "imgsz": 32})
    health = Health(build_self_test(settings))

    with open_backend(settings, stop) as backend, open_run_parts(settings, backend, health, Liveness()) as parts:
        run_id = backend.runs.enqueue(request)
        slots = Slots(slot_devices(settings)).acquire(1)
        lease = backend.queue.claim(
            describe_worker(settings, len(slots.gpus)), str(uuid.uuid4()), settings.lease_seconds
        )
        end = Execution(parts.host).run(lease, slots, stop)
        row = backend.runs.get(run_id)

    assert isinstance(end.outcome, Completed)
    assert (end.delivery, end.status) == (Delivery.ACCEPTED, Status.COMPLETED)
    assert (row.status, row.results["epochs_completed"]) == ("completed", 1)
