"""The planner's counts against what real networks hold and what torch's profiler sees of a real step."""

from __future__ import annotations

import json

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn
from torch.profiler import ProfilerActivity, profile

from l2p.lift import Lift
from l2p.objectives import build_objectives
from l2p.runtime import has_fast_bf16
from l2p.students.build import from_teacher
from l2p.teachers import load_teacher
from l2p.training import memory
from l2p.training.engine.ema import EMA
from l2p.training.memory import LiveBytes, Parts, StageBytes, stage_bytes
from l2p.training.optim import build_optimizer
from l2p.training.plan import Way, plan, shared_out

SCRATCH = 4e6  # bytes that CPU kernels take for themselves at these sizes


def allocated(run) -> int:
    """The most bytes that a call had allocated at once, as the profiler saw the allocator."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        run()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


@pytest.mark.parametrize(
    "dtype, checkpointing",
    [
        # A CPU that emulates bf16 keeps copies in fp32 that no count of tensors sees.
        ("bf16" if has_fast_bf16(torch.device("cpu")) else "fp32", False),
        pytest.param("fp32", False, marks=pytest.mark.slow),
        pytest.param("fp32", True, marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_a_step_is_counted_as_the_allocator_sees_it(recipe, tiny_pipeline, dtype, checkpointing):
    recipe.dtype, recipe.one_step.objectives["pairs"]["perceptual_fraction"] = dtype, 1.0
    counted = stage_bytes(recipe, "one_step", checkpointing)

    teacher = load_teacher(tiny_pipeline)
    basis = torch.linalg.qr(torch.randn(768, 64, dtype=torch.float64))[0]
    lift = Lift(basis, 1.0, torch.zeros(768, dtype=torch.float64), 1.0, 1.0, 1.0)
    student = from_teacher(teacher, lift, recipe.student, (64, 64)).float()
    student.set_gradient_checkpointing(checkpointing)
    optimizer = build_optimizer(student, "muon")
    objectives = build_objectives(recipe.one_step.objectives, teacher=teacher, lift=lift)
    assert counted.weights == sum(v.nbytes for v in (*student.parameters(), *student.buffers()))
    assert counted.average == sum(v.nbytes for v in EMA(student, 0.9).average.values()) == counted.gradients
    assert counted.denoiser == sum(p.nbytes for p in teacher.transformer.parameters())
    for p in student.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    states = [v for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor)]
    assert counted.optimizer == sum(v.nbytes for v in states)

    found = Parts(None, teacher, lift, student, 0)
    memory._pass(recipe, found, objectives, 2)  # tables of positions are made once and kept
    again = memory._pass(recipe, found, objectives, 2)
    assert again == pytest.approx(counted.step[1], rel=0.02)  # with numbers nearly as without
    batch = 2 * 4 * (2 * 3 * 64 * 64 + 16 * 8 * 8 + 96 * 32)
    seen = allocated(lambda: memory._pass(recipe, found, objectives, 2)) - batch
    # The allocator alone sees what a kernel takes and gives back within its call.
    assert 0.99 * counted.step[1] < seen < counted.step[1] + SCRATCH


def test_what_is_dropped_is_counted_no_more():
    layers = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(8)))
    x = torch.zeros(100, 64)
    with LiveBytes() as live, torch.no_grad():
        layers(x)
    assert (live.now, live.peak) == (0, 2 * x.nbytes)
    with LiveBytes() as live:
        y = layers(x)
    assert live.now == live.peak == 8 * x.nbytes
    del y
    assert live.now == 0


@pytest.mark.slow
def test_checkpointing_and_more_pictures(recipe):
    recipe.student.head.num_blocks = 4
    kept, again = (stage_bytes(recipe, "one_step", checkpointing) for checkpointing in (False, True))
    assert again.step[1] < kept.step[1] and again.weights == kept.weights
    assert kept.activations(1) == kept.step[0] and kept.activations(2) == kept.step[1]
    assert kept.activations(5) - kept.activations(4) == kept.step[1] - kept.step[0] > 0


def counts(checkpointing: bool) -> StageBytes:
    """Round numbers, in bytes."""
    return StageBytes(
        weights=800,
        gradients=400,
        optimizer=400,
        average=400,
        critics=8,
        denoiser=240,
        blocks=200,
        denoiser_block=20,
        vae=30,
        text=0,
        largest_block=10,
        rest=40,
        step=(50, 60) if checkpointing else (300, 550),
    )


def test_shares_of_what_was_counted():
    whole = shared_out(counts(False), Way(False, "ddp", "whole", 1), 4, 3)
    assert whole == {
        "weights": 800,
        "gradients": 400,
        "optimizer": 400,
        "average": 400,
        "gathered": 0,
        "teacher": 270,
        "critics": 8,
        "activations": 800,
    }
    shared = shared_out(counts(True), Way(True, "fsdp", "sharded", 1), 4, 3)
    assert shared == {
        "weights": 200,
        "gradients": 100,
        "optimizer": 100,
        "average": 100,
        "gathered": 120,
        "teacher": 270 - 200 + 50 + 40,
        "critics": 8,
        "activations": 70,
    }
    assert shared_out(counts(True), Way(True, "ddp", "offloaded", 1), 4, 3)["teacher"] == 270 - 200 + 40


@pytest.mark.parametrize(
    "vram, change",
    [
        (4_000, []),
        (2_900, ["one_step.accumulate=4"]),
        (2_700, ["parallel.strategy=fsdp"]),
        (1_250, ["parallel.strategy=fsdp", "parallel.teacher=sharded", "one_step.accumulate=4"]),
        (1_090, ["student.gradient_checkpointing=true", "parallel.strategy=fsdp"]),
        (500, None),
    ],
)
def test_the_plan_names_the_change_that_makes_it_fit(recipe, monkeypatch, vram, change):
    recipe.one_step.batch_size = 16
    monkeypatch.setattr(
        "l2p.training.plan.stage_bytes", lambda recipe, stage, checkpointing: counts(checkpointing)
    )
    (row,) = plan(recipe, gpus=4, vram=vram)
    assert row["pictures"] == 4 and row["total"] == sum(row["bytes"].values())
    assert row["change"] == change and row["fits"] == (change == [])
    assert change is None or row["total_after"] == sum(row["bytes_after"].values()) <= 0.9 * vram


def test_the_command(recipe, tmp_path, l2p, monkeypatch):
    """It asks for none of the run's packages, which need not be where the plan is made."""
    path = tmp_path / "recipe.yaml"
    recipe.logging.wandb = True
    OmegaConf.save(OmegaConf.structured(recipe), path)
    monkeypatch.setattr(
        "l2p.training.plan.stage_bytes", lambda recipe, stage, checkpointing: counts(checkpointing)
    )
    code, out, _ = l2p("plan", path, "--gpus", 3, "--json")
    assert code == 0 and json.loads(out)[0]["bytes"]["weights"] == 800
    code, out, _ = l2p("plan", path, "--gpus", 3, "--vram", "2.3KB")
    assert code == 1 and "one_step: does not fit; with parallel.strategy=fsdp it takes" in out
    code, out, _ = l2p("plan", path, "--gpus", 3, "--vram", "300")
    assert code == 1 and "does not fit, whatever is sharded" in out
    code, _, told = l2p("plan", path, "--gpus", 2)
    assert (
        code == 2 and "one_step.batch_size is 3, which 2 GPUs with accumulate=1 cannot share evenly" in told
    )
    code, _, told = l2p("plan", path, "--gpus", 0)
    assert code == 2 and "--gpus is 0" in told
