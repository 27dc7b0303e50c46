from __future__ import annotations

import signal
import time

import pytest

from trainer.core.errors import MachineFailed, RunFailed
from trainer.core.stop import Stopped, StopReason
from trainer.training.supervisor.training_watch import oom_kills


def test_exit_without_result_is_reported_with_code_and_last_line(program):
    training = program("dies_without_result")

    with pytest.raises(MachineFailed, match=r"training \(epoch 1\).*exit code 3.*an unexpected way"):
        training.train()


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_end_by_signal_is_reported_with_signal_name(program, number):
    training = program("dies_by_signal", str(int(number)))

    with pytest.raises(MachineFailed, match=number.name):
        training.train()


def test_sigkill_is_reported_as_lack_of_host_memory(program):
    with pytest.raises(MachineFailed, match="memory"):
        program("dies_by_signal", str(int(signal.SIGKILL))).train()


def test_sigbus_is_reported_as_full_shared_memory(program):
    with pytest.raises(MachineFailed, match="/dev/shm"):
        program("dies_by_signal", str(int(signal.SIGBUS))).train()


def test_output_before_sigkill_is_used_for_diagnosis(program):
    with pytest.raises(MachineFailed, match=r"memory.*fewer workers.*DataLoader worker"):
        program("is_killed_for_memory").train()


def test_memory_error_of_training_process_is_diagnosed(program):
    with pytest.raises(MachineFailed, match="memory"):
        program("exhausts_memory").train()


def test_exhausted_gpu_memory_is_diagnosed(program):
    training = program("trains_quickly").behave(
        at_epoch=2,
        crash={"error": "OutOfMemoryError", "message": "CUDA out of memory. Tried to allocate 2.00 GiB."},
    )

    with pytest.raises(RunFailed, match=r"GPU ran out of memory.*batch 4, image size 64"):
        training.train()


def test_process_that_never_gets_ready_is_killed_after_time_limit(program):
    training = program("never_starts", starting=0.3)
    began = time.monotonic()

    with pytest.raises(MachineFailed, match="not ready after"):
        training.train()

    assert time.monotonic() - began < 20


def test_missing_package_is_named_in_error(program):
    with pytest.raises(MachineFailed, match="a_package_that_is_not_installed"):
        program("cannot_be_imported").train()


def test_missing_program_is_machine_failure(program, tmp_path):
    training = program("dies_without_result")
    training.trainer.program = (str(tmp_path / "nothing"),)

    with pytest.raises(MachineFailed, match="cannot start"):
        training.train()


def test_silent_process_is_killed_as_stuck(program):
    training = program("goes_silent", stall=0.4)
    began = time.monotonic()

    with pytest.raises(MachineFailed, match=r"stuck.*training \(epoch 1\)"):
        training.train()

    assert time.monotonic() - began < 20


def test_suspended_process_is_killed_as_stuck(program):
    """A debugger or a batch system can send SIGSTOP. The suspended process cannot react."""
    training = program("dies_by_signal", str(int(signal.SIGSTOP)), stall=0.4)

    with pytest.raises(MachineFailed, match="stuck"):
        training.train()


def test_result_is_accepted_if_process_does_not_exit(program):
    training = program("hangs_after_finishing", exit=0.3)
    began = time.monotonic()

    assert training.train().report == {"environment": {"fine": True}, "sandbox": []}
    assert time.monotonic() - began < 20


def test_incomplete_final_event_is_not_a_result(program):
    training = program("writes_half_a_line")

    with pytest.raises(MachineFailed, match="without a result"):
        training.train()

    assert [event.code for event in training.of("warning")] == ["garbled_event"]
    assert len(training.of("epoch")) == 1


def test_exit_code_0_without_final_event_is_a_failure(program):
    training = program("closes_the_pipe")

    with pytest.raises(MachineFailed, match="exit code 0"):
        training.train()

    assert len(training.of("epoch")) == 1


def test_unrequested_stop_is_a_failure(program):
    with pytest.raises(MachineFailed, match="without a result"):
        program("stops_without_request").train()


def test_exception_of_listener_ends_training_and_is_raised(program):
    training = program("trains_quickly").behave(seconds_per_epoch=60)

    def journal_is_full(event):
        raise OSError(28, "No space left on device")

    began = time.monotonic()
    with pytest.raises(OSError, match="No space left"):
        training.trainer.train(training.order(), training.stop, journal_is_full, training.on_line)
    assert time.monotonic() - began < 20


def test_stop_before_start_prevents_training(program, home):
    training = program("trains_quickly")
    training.stop.set(StopReason.CANCELED)

    with pytest.raises(Stopped):
        training.train()

    assert list(home.iterdir()) == []


def test_kernel_oom_kill_count_is_used_for_diagnosis(program, monkeypatch):
    counts = iter([4, 5])
    monkeypatch.setattr("trainer.training.supervisor.training_watch.oom_kills", lambda: next(counts))

    with pytest.raises(MachineFailed, match="out-of-memory killer ended the process"):
        program("dies_by_signal", str(int(signal.SIGKILL))).train()


def test_kernel_oom_kill_count_is_read():
    assert oom_kills() >= 0


def test_private_folder_that_cannot_be_created_is_reported(program, home):
    training = program("trains_quickly")
    home.rmdir()
    home.write_text("a file where the folder should be")

    with pytest.raises(MachineFailed, match="cannot be created"):
        training.train()
