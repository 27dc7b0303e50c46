"""Accelerators are lent and come back."""

from trainer.worker.slots import CPU, Slots


def test_what_is_lent_is_not_free():
    slots = Slots([0, 1])

    loan = slots.take(1)

    assert (loan.gpus, slots.free, slots.total) == ((0,), 1, 2)


def test_giving_back_twice_is_harmless():
    slots = Slots([0])
    loan = slots.take(1)

    loan.give_back()
    loan.give_back()

    assert slots.free == 1


def test_a_run_may_take_several():
    assert Slots([0, 1, 2]).take(2).gpus == (0, 1)


def test_a_cpu_slot_has_no_gpu():
    slots = Slots([CPU, CPU])

    assert slots.take(1).gpus == ()
    assert slots.free == 1


def test_waiting_ends_when_a_slot_comes_back():
    import threading

    slots = Slots([0])
    loan = slots.take(1)
    threading.Timer(0.05, loan.give_back).start()

    assert not slots.wait_for_free(0.01)
    assert slots.wait_for_free(10)
