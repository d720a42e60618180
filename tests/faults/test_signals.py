"""SIGINT and SIGTERM in the middle of a step: a checkpoint of that step, one line, and the same weights after going on."""

from __future__ import annotations

import os
import signal

import pytest

from tests.faults.conftest import check_told
from tests.faults.injection import Operations

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
CHECKPOINT = {"distill": "one_step", "grow": "grow", "train-head": "head"}


def during_step(number: int, step: int):
    """The signal arrives while the step after `step` is between its loss and its gradients."""

    def install() -> None:
        from l2p.training.engine.callbacks import NaNGuard

        original = NaNGuard.on_before_backward

        def on_before_backward(self, trainer, *rest):
            original(self, trainer, *rest)
            if trainer.global_step == step:
                os.kill(os.getpid(), number)

        NaNGuard.on_before_backward = on_before_backward

    return install


def check_signal(world, name: str, number: int) -> None:
    from l2p.training.engine.sharded import load_checkpoint

    world.undisturbed(name)
    world.clean()
    line = check_told(world.run(name, during_step(number, 0)), f"{name}, signal {number}", CODES[number])
    assert "run the same command again" in line
    checkpoint = world.out / "checkpoints" / f"{CHECKPOINT[name]}.ckpt"
    assert load_checkpoint(checkpoint)["l2p"]["step"] == 1
    world.check_resumed(name, f"{name} after signal {number}")


@pytest.mark.parametrize(("name", "number"), [("train-head", signal.SIGTERM)])
def test_a_signal_in_a_step_keeps_it(world, name, number):
    check_signal(world, name, number)


@pytest.mark.slow
@pytest.mark.parametrize("number", list(CODES))
@pytest.mark.parametrize("name", list(CHECKPOINT))
def test_a_signal_in_a_step_of_every_training(world, name, number):
    check_signal(world, name, number)


@pytest.mark.slow
@pytest.mark.parametrize("number", list(CODES))
@pytest.mark.parametrize("name", ["distill", "grow", "train-head", "generate", "evaluate", "export"])
def test_a_signal_at_a_file_operation(world, name, number):
    """Between the stages, too: one line where Python hears it, no half file, and the same result after going on."""
    count = world.operations(name)
    for at in sorted({1, count // 3, count * 2 // 3, count - 2}):

        def send(place: int, *_, at=at) -> None:
            if place == at:
                os.kill(os.getpid(), number)

        world.clean()
        done = world.run(name, lambda send=send: Operations(world.root, send).install())
        what = f"{name}, signal {number} at operation {at} of {count}"
        if done.code != 0 and not (number == signal.SIGTERM and done.code == -number):
            check_told(done, what, CODES[number])
        world.check_resumed(name, what)
