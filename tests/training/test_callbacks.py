"""A GPU's numbers are read some steps at a time: the log loses none, and no checkpoint follows a broken one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from l2p.errors import UserError
from l2p.training.engine import callbacks, log
from l2p.training.engine.callbacks import NaNGuard
from l2p.training.engine.log import READ_EVERY, CsvLog, read_log


@pytest.fixture
def gpu(monkeypatch):
    """A trainer whose numbers seem to lie on a GPU; the list of those that were waited for."""
    for module in (callbacks, log):
        monkeypatch.setattr(module, "waits", lambda value: True)
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.5)
    trainer = SimpleNamespace(global_step=0, optimizers=[optimizer], precision_plugin=None, loggers=[])
    module = SimpleNamespace(stage_name="one_step", terms={})
    return trainer, module, weight


def steps(trainer, module, weight, guard, record, losses):
    for loss in losses:
        module.terms = {"loss": torch.tensor(loss), "pairs/pixel": torch.tensor(2 * loss)}
        guard.on_before_backward(trainer, module, module.terms["loss"])
        weight.grad = torch.full((2,), loss)
        guard.on_before_optimizer_step(trainer, module, trainer.optimizers[0])
        trainer.global_step += 1
        record.after_step(trainer, module)


def test_the_log_is_whole_and_read_in_runs(gpu, tmp_path):
    trainer, module, weight = gpu
    guard, record = NaNGuard(1.0, tmp_path / "last.ckpt", "one_step"), CsvLog(tmp_path / "log.csv")
    count = READ_EVERY + 3
    losses = [1 / (n + 1) for n in range(count)]
    steps(trainer, module, weight, guard, record, losses)
    assert len(read_log(record.logger.path)) == READ_EVERY
    guard.on_save_checkpoint(trainer, module, {})
    record.on_save_checkpoint(trainer, module, {})
    rows = read_log(record.logger.path)
    assert [int(row["step"]) for row in rows] == list(range(1, count + 1))
    for row, loss in zip(rows, losses, strict=True):
        assert float(row["loss"]) == pytest.approx(loss, rel=1e-6)
        assert float(row["pairs/pixel"]) == pytest.approx(2 * loss, rel=1e-6)
        assert float(row["grad_norm"]) == pytest.approx(loss * 2**0.5, rel=1e-6)
    steps(trainer, module, weight, guard, record, [0.5])
    record.on_exception(trainer, module, KeyboardInterrupt())
    assert len(read_log(record.logger.path)) == count + 1


@pytest.mark.parametrize("bad", (float("nan"), float("inf")))
def test_no_checkpoint_follows_a_broken_number(gpu, tmp_path, bad):
    trainer, module, weight = gpu
    guard, record = NaNGuard(1.0, tmp_path / "last.ckpt", "one_step"), CsvLog(tmp_path / "log.csv")
    steps(trainer, module, weight, guard, record, [1.0, bad, 1.0])
    with pytest.raises(UserError, match="one_step stopped at step 3: a loss or a gradient .* is not finite"):
        guard.on_save_checkpoint(trainer, module, {})
    guard = NaNGuard(1.0, tmp_path / "last.ckpt", "one_step")
    trainer.global_step = 0
    with pytest.raises(UserError, match="is not finite"):
        steps(trainer, module, weight, guard, record, [1.0, bad] + [1.0] * READ_EVERY)
    assert trainer.global_step == READ_EVERY - 1
