from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.process.conftest import second, subreapers
from trainer.core.errors import MachineFailed
from trainer.core.stop import Stopped, StopReason


def test_prestarted_process_gets_next_training_order(program, tmp_path):
    training = program("exits_on_first_order", str(tmp_path / "no"), warm_start=True)
    training.trainer.warm()
    (prestarted,) = subreapers()
    (waiting,) = second(prestarted).children()

    report = training.train(devices=(1,)).report["environment"]

    assert report["pid"] == waiting.pid
    assert (
        report["devices"] is None
    )  # the devices were unknown when the process started, so its training order contains them


def test_second_call_of_warm_starts_no_process(program, tmp_path):
    training = program("exits_on_first_order", str(tmp_path / "no"), warm_start=True)

    training.trainer.warm()
    training.trainer.warm()

    assert len(subreapers()) == 1


def test_without_warm_start_no_process_is_prestarted(program, tmp_path):
    training = program("exits_on_first_order", str(tmp_path / "no"))

    training.trainer.warm()
    training.train()

    assert subreapers() == []


def test_next_process_is_prestarted_during_training(program):
    training = program("trains_quickly", warm_start=True).behave(seconds_per_epoch=0.4)
    seen = []
    training.when(lambda t: t.of("epoch"), lambda: seen.append(len(subreapers())))

    training.train(epochs=2)

    assert seen == [2]
    assert len(subreapers()) == 1


def test_dead_prestarted_process_is_replaced_by_new_process(program, tmp_path):
    training = program("exits_on_first_order", str(tmp_path / "no"), warm_start=True)
    training.trainer.warm()
    (prestarted,) = subreapers()
    prestarted.kill()
    prestarted.wait()

    assert training.train(devices=(1,)).report["environment"]["devices"] == "1"


def test_prestarted_process_that_exits_on_its_training_order_is_replaced(program, tmp_path):
    (tmp_path / "once").touch()
    training = program("exits_on_first_order", str(tmp_path / "once"), warm_start=True)
    training.trainer.warm()

    assert training.train(devices=(1,)).report["environment"]["devices"] == "1"


def test_shutdown_stops_training_whose_prestarted_process_never_gets_ready(program):
    training = program("never_starts", warm_start=True, grace=0.2)
    training.trainer.warm()
    threading.Timer(0.2, training.stop.set, [StopReason.SHUTDOWN]).start()
    with pytest.raises(Stopped):
        training.train()


def test_process_is_prestarted_after_early_failure(program):
    training = program("cannot_be_imported", warm_start=True)

    with pytest.raises(MachineFailed):
        training.train()

    assert training.trainer._prestarted is not None


def test_no_process_is_prestarted_after_shutdown(program):
    training = program("never_starts", warm_start=True, grace=0.1)
    threading.Timer(0.2, training.stop.set, [StopReason.SHUTDOWN]).start()

    with pytest.raises(Stopped):
        training.train()

    assert subreapers() == []


def test_close_ends_prestarted_process_and_starts_no_other(program, tmp_path):
    training = program("exits_on_first_order", str(tmp_path / "no"), warm_start=True)
    training.trainer.warm()

    training.trainer.close()
    training.trainer.warm()

    assert subreapers() == []


def test_parallel_trainings_return_their_own_results(program, tmp_path):
    training = program("trains_quickly", warm_start=True).behave(seconds_per_epoch=0.1)
    orders = [training.order(epochs=epochs, run_dir=tmp_path / f"{epochs}") for epochs in (1, 3)]

    def train(order):
        return training.trainer.train(order, training.stop, training.on_event, training.on_line)

    with ThreadPoolExecutor(2) as pool:
        found = [finished.report["mAP"] for finished in pool.map(train, orders)]

    assert found == [order.plan.epochs / (order.plan.epochs + 1) / 2 for order in orders]
