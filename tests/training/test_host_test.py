"""The test of a host with the real training process, without a run."""

import os

import pytest

from trainer.training.supervisor.process import ChildTrainer

pytestmark = [pytest.mark.training, pytest.mark.long]


@pytest.fixture
def tested(tmp_path):
    """Return a function that tests the host. `environment` is added to the environment of the supervisor."""

    def test(devices=(), **environment):
        trainer = ChildTrainer(
            environment=dict(os.environ) | environment, home=tmp_path / "children", weights=tmp_path / "models"
        )
        found = trainer.test(devices)
        assert list((tmp_path / "children").glob("child-*")) == []
        return found

    return test


def test_working_host_passes(tested):
    assert tested() is None


def test_broken_library_is_found(tested, tmp_path):
    (tmp_path / "broken" / "torch").mkdir(parents=True)
    (tmp_path / "broken" / "torch" / "__init__.py").write_text("raise ImportError('libcudart.so.13 is missing')")

    problem = tested(PYTHONPATH=str(tmp_path / "broken"))

    assert "libcudart.so.13 is missing" in problem
    assert "install requirements.txt again" in problem


def test_missing_gpu_is_found(tested):
    problem = tested(devices=(99,))

    assert problem.startswith("The GPU or its driver failed")
    assert "0 of 1 GPUs" in problem
