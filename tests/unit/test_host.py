"""Detection of GPUs and processors."""

import pytest

from trainer import host
from trainer.host import Gpu


@pytest.fixture
def two_gpus(monkeypatch):
    gpus = tuple(Gpu(index=i, name=f"G{i}", memory=24 * host.GIB, driver="600") for i in range(2))
    monkeypatch.setattr(host, "gpus", lambda: gpus)


@pytest.mark.parametrize(
    ("mask", "left"),
    [(None, [0, 1]), ("1", [1]), ("1, 0", [1, 0]), ("", []), ("-1", []), ("0,7,1", [0]), ("GPU-8932f937", [])],
)
def test_cuda_visible_devices_selects_and_orders_gpus(two_gpus, mask, left):
    assert [gpu.index for gpu in host.visible_gpus(mask)] == left


@pytest.mark.parametrize(
    ("cores", "usable", "slots", "loaders"),
    [(64, 64, 1, None), (64, 64, 8, None), (16, 16, 4, 4), (8, 8, 8, 1), (4, 4, 8, 1), (2, 2, 1, None), (64, 4, 1, 4)],
)
def test_loaders_per_slot_depend_on_usable_processors(monkeypatch, cores, usable, slots, loaders):
    monkeypatch.setattr(host.os, "cpu_count", lambda: cores)
    monkeypatch.setattr(host.os, "sched_getaffinity", lambda _: set(range(usable)))

    assert host.loaders_per_slot(slots) == loaders


def test_hardware_has_device_type_ram_and_cpu_model():
    facts = host.hardware()

    assert facts["device_type"] in ("cpu", "gpu")
    assert facts["ram_gb"] > 0
    assert facts["cpu_model"]
