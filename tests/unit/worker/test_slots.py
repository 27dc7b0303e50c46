"""Slots are acquired and released."""

from trainer.worker.slots import CPU, Slots


def test_acquired_slot_is_not_free():
    slots = Slots([0, 1])

    held = slots.acquire(1)

    assert (held.gpus, slots.free, slots.total) == ((0,), 1, 2)


def test_release_is_idempotent():
    slots = Slots([0])
    held = slots.acquire(1)

    held.release()
    held.release()

    assert slots.free == 1


def test_run_can_acquire_several_slots():
    assert Slots([0, 1, 2]).acquire(2).gpus == (0, 1)


def test_slots_of_run_are_on_different_gpus():
    slots = Slots([0, 1, 0, 1])

    assert (slots.gpus, slots.free_gpus, slots.free) == (2, 2, 4)
    assert slots.acquire(2).gpus == (0, 1)
    assert slots.acquire(3).gpus == (0, 1)


def test_gpu_with_most_free_slots_is_acquired_first():
    slots = Slots([0, 0, 1, 1])

    assert [slots.acquire(1).gpus for _ in range(4)] == [(0,), (1,), (0,), (1,)]


def test_free_gpus_counts_each_gpu_once():
    slots = Slots([0, 0])
    held = slots.acquire(1)

    assert (slots.free, slots.free_gpus) == (1, 1)
    slots.acquire(1)
    assert slots.free_gpus == 0
    held.release()
    assert slots.free_gpus == 1
    assert Slots([CPU, CPU]).gpus == 0


def test_cpu_slot_has_no_gpu():
    slots = Slots([CPU, CPU])

    assert slots.acquire(1).gpus == ()
    assert slots.free == 1


def test_waiting_ends_when_slot_is_released():
    import threading

    slots = Slots([0])
    held = slots.acquire(1)
    threading.Timer(0.05, held.release).start()

    assert not slots.wait_for_free(0.01)
    assert slots.wait_for_free(10)
