"""What this machine is."""

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
def test_an_operators_mask_is_respected(two_gpus, mask, left):
    assert [gpu.index for gpu in host.visible_gpus(mask)] == left


def test_the_hardware_is_told_in_the_web_apps_words():
    facts = host.hardware()

    assert facts["device_type"] in ("cpu", "gpu")
    assert facts["ram_gb"] > 0
    assert facts["cpu_model"]
