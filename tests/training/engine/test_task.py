"""A training of one network by one loss: against a loop written out here, killed, stopped, diverging, of other settings."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from torch import nn

from l2p import flow
from l2p.errors import UserError
from l2p.training.engine.log import read_log
from l2p.training.engine.task import OptimConfig, Task, run_task
from l2p.training.optim import build_optimizer, build_schedule
from l2p.training.run_folder import TrainingFolder

CPU = torch.device("cpu")


class Folder(TrainingFolder):
    kind, stages, no_effect = "linear", ("linear",), ("steps",)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))


def config(steps: int, **changes) -> OptimConfig:
    settings = {"learning_rate": 1e-2, "optimizer": "muon", "warmup_steps": 2, "checkpoint_every": 5}
    return OptimConfig(**{"steps": steps, "ema_decay": 0.9, **settings, **changes})


def loss_of(net: nn.Module, step: int) -> dict[str, torch.Tensor]:
    x = flow.noise([step], 1, 8, 4)[0, 0]
    return {"mse": (net(x) - 2 * x).pow(2).mean(), "size": 1e-3 * net[0].weight.square().mean()}


def train(path, steps: int, at: int | None = None, act=None, recipe=None, **changes) -> nn.Module:
    """Fit y = 2 x; at step `at` first do `act`."""
    net = network()

    def loss(step: int) -> dict[str, torch.Tensor]:
        if step == at:
            act()
        return loss_of(net, step)

    task = Task(net, config(steps, **changes), loss)
    run_task(task, Folder(path, recipe or {"seed": 0}), "linear", CPU)
    return net


def written_out(steps: int) -> tuple[list[torch.Tensor], list[float]]:
    """The averaged weights and the losses of a plain loop: schedule, backward, clip, step, average."""
    net, settings = network(), config(steps)
    optimizer = build_optimizer(net, settings.optimizer, settings.learning_rate, settings.weight_decay)
    schedule = build_schedule(optimizer, steps, settings.warmup_steps)
    average, losses = [p.detach().clone() for p in net.parameters()], []
    for step in range(steps):
        schedule.step_update(step)
        loss = sum(loss_of(net, step).values())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), settings.gradient_clip)
        optimizer.step()
        decay = min(settings.ema_decay, (2 + step) / (11 + step))
        average = [
            decay * a + (1 - decay) * p.detach() for a, p in zip(average, net.parameters(), strict=True)
        ]
        losses.append(float(loss.detach()))
    return average, losses


def assert_equal(net: nn.Module, expected: list[torch.Tensor], atol: float) -> None:
    for found, wanted in zip(net.parameters(), expected, strict=True):
        torch.testing.assert_close(found.detach(), wanted, rtol=0, atol=atol)


def raise_interrupted() -> None:
    raise InterruptedError


def test_it_is_the_plain_loop(tmp_path):
    average, losses = written_out(20)
    assert_equal(train(tmp_path, 20), average, 1e-6)
    rows = read_log(tmp_path / "logs" / "linear.csv")
    assert [int(row["step"]) for row in rows] == list(range(1, 21))
    assert [float(row["loss"]) for row in rows] == pytest.approx(losses, rel=1e-5)


def test_killed_and_resumed_it_comes_to_the_same_weights_and_log(tmp_path):
    expected, _ = written_out(20)
    with pytest.raises(InterruptedError):
        train(tmp_path, 20, 13, raise_interrupted)
    log = tmp_path / "logs" / "linear.csv"
    log.write_text(log.read_text() + "14,0.1,")  # half a row
    assert_equal(train(tmp_path, 20), expected, 1e-6)
    assert [int(row["step"]) for row in read_log(log)] == list(range(1, 21))
    before = train(tmp_path, 20)  # nothing left to do: the average is read back
    assert_equal(before, expected, 1e-6)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_the_running_step(tmp_path, number):
    expected, _ = written_out(20)
    with pytest.raises(KeyboardInterrupt) as stopped:
        train(tmp_path, 20, 11, lambda: os.kill(os.getpid(), number))
    assert stopped.value.signum == number
    from l2p.training.engine.sharded import load_checkpoint

    assert load_checkpoint(tmp_path / "checkpoints" / "linear.ckpt")["l2p"]["step"] == 12
    assert_equal(train(tmp_path, 20), expected, 1e-6)


def test_what_no_step_number_tells_is_kept_with_the_checkpoint(tmp_path):
    """Batches of one generator, drawn one after the other."""

    def run(path, until: int | None = None) -> nn.Module:
        net, generator = network(), torch.Generator().manual_seed(5)

        def batch(step: int) -> torch.Tensor:
            if step == until:
                raise InterruptedError
            return torch.randn(8, 4, generator=generator)

        task = Task(
            net,
            config(12),
            lambda x: {"mse": (net(x) - 2 * x).pow(2).mean()},
            batch,
            state=lambda: {"generator": generator.get_state()},
            restore=lambda state: generator.set_state(state["generator"]),
        )
        run_task(task, Folder(path, {}), "linear", CPU)
        return net

    straight = run(tmp_path / "straight")
    with pytest.raises(InterruptedError):
        run(tmp_path / "killed", until=8)
    assert_equal(run(tmp_path / "killed"), list(straight.parameters()), 1e-7)


def test_a_loss_that_is_not_finite_stops_it_with_the_last_good_checkpoint(tmp_path):
    net = network()
    task = Task(
        net, config(9), lambda step: {"mse": net[0].weight.sum() * (float("nan") if step == 6 else 1.0)}
    )
    said = r"linear stopped at step 6: the loss is nan \(from mse\).*linear.ckpt.*Lower optim.learning_rate"
    with pytest.raises(UserError, match=said):
        run_task(task, Folder(tmp_path, {}), "linear", CPU)


def test_other_settings_other_sizes_and_fewer_steps_are_refused(tmp_path):
    train(tmp_path, 5)
    with pytest.raises(UserError, match=r"linear stage with other settings \(seed: 0 there, 1 here\)"):
        train(tmp_path, 9, recipe={"seed": 1})
    with pytest.raises(UserError, match="is of step 5, beyond the 3 steps"):
        train(tmp_path, 3)
    other = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4))
    with pytest.raises(UserError, match="of another network"):
        run_task(Task(other, config(9), lambda step: {}), Folder(tmp_path, {"seed": 0}), "linear", CPU)


def test_a_preview_is_of_the_average_at_every_checkpoint_and_at_the_end(tmp_path):
    net, seen = network(), {}

    def preview(shown: nn.Module, path) -> None:
        seen[path.name] = (shown[0].weight.detach().clone(), shown.training)

    run_task(
        Task(net, config(7), lambda step: loss_of(net, step), preview=preview),
        Folder(tmp_path, {}),
        "linear",
        CPU,
    )
    assert list(seen) == ["linear-000005.png", "linear-000007.png"]
    assert torch.equal(seen["linear-000007.png"][0], net[0].weight) and not seen["linear-000007.png"][1]
