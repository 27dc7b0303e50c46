from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.process.conftest import second, subreapers
from trainer.core.errors import MachineFailed
from trainer.core.stop import Stopped, StopReason


def test_a_spare_gets_the_next_order(program, tmp_path):
    training = program("dies_once_ordered", str(tmp_path / "no"), warm_start=True)
    training.trainer.warm()
    (spare,) = subreapers()
    (waiting,) = second(spare).children()

    report = training.train(devices=(1,)).report

    assert report["pid"] == waiting.pid
    assert report["devices"] is None  # it was started before anybody knew: its order tells it


def test_warming_twice_keeps_one_spare(program, tmp_path):
    training = program("dies_once_ordered", str(tmp_path / "no"), warm_start=True)

    training.trainer.warm()
    training.trainer.warm()

    assert len(subreapers()) == 1


def test_without_warm_start_there_is_no_spare(program, tmp_path):
    training = program("dies_once_ordered", str(tmp_path / "no"))

    training.trainer.warm()
    training.train()

    assert subreapers() == []


def test_the_next_spare_is_warmed_while_a_training_is_busy(program):
    training = program("trains_quickly", warm_start=True).behave(seconds_per_epoch=0.4)
    seen = []
    training.when(lambda t: t.of("epoch"), lambda: seen.append(len(subreapers())))

    training.train(epochs=2)

    assert seen == [2]
    assert len(subreapers()) == 1


def test_a_spare_that_is_dead_is_replaced_by_a_cold_start(program, tmp_path):
    training = program("dies_once_ordered", str(tmp_path / "no"), warm_start=True)
    training.trainer.warm()
    (spare,) = subreapers()
    spare.kill()
    spare.wait()

    assert training.train(devices=(1,)).report["devices"] == "1"


def test_a_spare_that_dies_on_its_order_is_replaced_by_a_cold_start(program, tmp_path):
    (tmp_path / "once").touch()
    training = program("dies_once_ordered", str(tmp_path / "once"), warm_start=True)
    training.trainer.warm()

    assert training.train(devices=(1,)).report["devices"] == "1"


def test_a_spare_that_never_gets_ready_does_not_hide_a_stop(program):
    training = program("never_starts", warm_start=True, grace=0.2)
    training.trainer.warm()
    threading.Timer(0.2, training.stop.set, [StopReason.SHUTDOWN]).start()
    with pytest.raises(Stopped):
        training.train()


def test_a_spare_waits_again_after_a_training_that_failed_early(program):
    training = program("cannot_be_imported", warm_start=True)

    with pytest.raises(MachineFailed):
        training.train()

    assert training.trainer._prestarted is not None


def test_no_spare_is_started_on_the_way_out(program):
    training = program("never_starts", warm_start=True, grace=0.1)
    threading.Timer(0.2, training.stop.set, [StopReason.SHUTDOWN]).start()

    with pytest.raises(Stopped):
        training.train()

    assert subreapers() == []


def test_closing_ends_the_spare_and_no_other_is_started(program, tmp_path):
    training = program("dies_once_ordered", str(tmp_path / "no"), warm_start=True)
    training.trainer.warm()

    training.trainer.close()
    training.trainer.warm()

    assert subreapers() == []


def test_two_trainings_at_once_have_a_child_each(program, tmp_path):
    training = program("trains_quickly", warm_start=True).behave(seconds_per_epoch=0.1)
    orders = [training.order(epochs=2, run_dir=tmp_path / name) for name in ("one", "other")]

    def train(order):
        return training.trainer.train(order, training.stop, training.hear_event, training.hear_line)

    with ThreadPoolExecutor(2) as pool:
        best = [finished.best.path for finished in pool.map(train, orders)]

    assert best == [str(order.run_dir / "weights" / "best.pt") for order in orders]
