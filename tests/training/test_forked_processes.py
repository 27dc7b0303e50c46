"""The training process forks loader workers, as on every GPU, and processes that store pixels."""

import pytest
from child_run import order_for, run_child
from drawn import draw

from trainer.core.dataset import Task
from trainer.core.events import BatchProgress, Finished
from trainer.training.wire import FAST_LOADER

pytestmark = pytest.mark.training


@pytest.mark.long
def test_training_with_loader_workers_and_pixel_processes_completes(tmp_path):
    """A forked process must not wait for a lock that the stdin thread held during the fork."""
    order = order_for(draw(tmp_path / "data", Task.DETECT), tmp_path / "run", epochs=2, imgsz=32)
    run = run_child(order, tmp_path / "home", program="forks.py", env={FAST_LOADER: str(1 << 30)}, timeout=100)

    assert isinstance(run.last, Finished), run.output
    assert "WORKERS 2 STORED 24" in run.output
    assert run.of(BatchProgress)
