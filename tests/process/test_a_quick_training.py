from __future__ import annotations

from trainer.core.events import Phase


def test_a_training_is_told_from_its_first_phase_to_its_model(program):
    training = program("trains_quickly")

    finished = training.train(epochs=3)

    assert finished == training.events[-1]
    assert [event.phase for event in training.of("phase")][:3] == [Phase.LOADING, Phase.SCANNING, Phase.TRAINING]
    assert [event.epoch for event in training.of("epoch")] == [1, 2, 3]
    assert training.lines[0] == "epoch 1/3 line 0: box_loss 1.000"
