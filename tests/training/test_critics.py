"""Objectives that own networks: their optimiser, their updates, and a run that was killed in the middle."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import nn

from l2p.errors import UserError
from l2p.objectives import OBJECTIVES, CriticObjective
from l2p.recipe import LoRAConfig
from l2p.students.io import load_student
from l2p.students.lora import lora_of
from l2p.training import distill
from l2p.training.critics import Critics
from l2p.training.engine.checkpoints import KeepLast
from l2p.training.engine.log import read_log
from l2p.training.engine.sharded import load_checkpoint

CRITICS = {
    "pairs": {"weight": 1.0, "perceptual": 0.0},
    "adversarial": {"weight": 0.1, "width": 8, "critic_updates": 2, "feature_scale": 0.5},
}


class Follower(CriticObjective):
    """A number that follows the student's: no picture, no feature."""

    name = "follower"

    def __init__(self, *, teacher, lift, weight: float = 1.0, updates: int = 1) -> None:
        super().__init__(weight, critic_learning_rate=0.1, critic_updates=updates)
        self.value = nn.Parameter(torch.zeros(()))

    def critic_loss(self, ctx):
        return {"gap": (self.value - ctx.batch) ** 2}


def follower(updates: int = 1) -> Follower:
    return Follower(teacher=None, lift=None, updates=updates)


def test_each_critic_takes_its_own_updates_before_the_student():
    class Step:
        batch, step = torch.tensor(1.0), 0
        purpose = staticmethod(nullcontext)

    objectives = nn.ModuleDict({"one": follower(1), "three": follower(3), "none": nn.Identity()})
    critics = Critics(objectives.items(), gradient_clip=0.0)
    terms = critics.step(Step)
    # Adam's first steps on a slope of one sign are of the learning rate's length.
    assert objectives["one"].value.item() == pytest.approx(0.1, rel=1e-3)
    assert objectives["three"].value.item() == pytest.approx(0.3, rel=0.1)
    assert set(terms) == {"one/critic_gap", "three/critic_gap"} and not terms["one/critic_gap"].requires_grad
    assert all(o.value.grad is None for o in (objectives["one"], objectives["three"]))
    with pytest.raises(UserError, match="critics of .*'one', 'three'.* this recipe of no objective"):
        Critics([], 0.0).load_state_dict(critics.state_dict())


def test_a_critic_that_diverges_is_named():
    class Step:
        batch, step = torch.tensor(float("nan")), 7
        purpose = staticmethod(nullcontext)

    with pytest.raises(UserError, match="critic of objectives.bad diverged at step 7.*critic_learning_rate"):
        Critics([("bad", follower())], 0.0).step(Step)


def test_on_a_gpu_a_critic_is_looked_at_now_and_then_and_before_a_checkpoint(monkeypatch):
    class Step:
        batch, step = torch.tensor(float("nan")), 7
        purpose = staticmethod(nullcontext)

    monkeypatch.setattr("l2p.training.critics.waits", lambda norm: True)
    critics = Critics([("bad", follower())], 0.0)
    critics.step(Step)
    with pytest.raises(UserError, match="critic of objectives.bad diverged .gradient norm nan"):
        critics.state_dict()
    Step.step = 15
    with pytest.raises(UserError, match="diverged at step 15"):
        critics.step(Step)


def test_a_weight_changed_under_autocast_is_seen_at_once():
    """Autocast keeps a bf16 copy of each weight; a critic's later updates must not read the old one."""

    class Scale(CriticObjective):
        name = "scale"

        def __init__(self):
            super().__init__(critic_learning_rate=0.5, critic_updates=3)
            self.layer, self.seen = nn.Linear(1, 1, bias=False), []

        def critic_loss(self, ctx):
            out = self.layer(torch.ones(1, 1))
            self.seen.append(out.item() - self.layer.weight.item())
            return {"out": out.float().sum()}

    class Step:
        step = 0
        purpose = staticmethod(nullcontext)

    objective = Scale()
    with torch.autocast("cpu", torch.bfloat16):
        Critics([("scale", objective)], 0.0).step(Step)
    assert max(map(abs, objective.seen)) < 0.01


def run_with_critics(new_run, name, dtype="fp32", **changes):
    recipe = new_run(name)
    recipe.dtype = dtype
    recipe.one_step.objectives = CRITICS | changes
    return recipe


@pytest.mark.slow
def test_kill_and_resume_equals_straight_with_critics_too(new_run, monkeypatch):
    straight = run_with_critics(new_run, "straight")
    distill.run(straight, progress=False)
    recipe = run_with_critics(new_run, "killed")
    original = KeepLast.on_train_batch_end

    def die(self, trainer, *rest):
        original(self, trainer, *rest)
        if trainer.global_step == 7:  # two steps after the checkpoint of step 5
            raise OSError("the power went out")

    with monkeypatch.context() as patch:
        patch.setattr(KeepLast, "on_train_batch_end", die)
        with pytest.raises(OSError, match="power"):
            distill.run(recipe, progress=False)
    out = Path(recipe.output_dir)
    assert load_checkpoint(out / "checkpoints" / "one_step.ckpt")["l2p"]["step"] == 5
    distill.run(recipe, progress=False)

    rows, expected = (read_log(Path(r.output_dir) / "logs" / "one_step.csv") for r in (recipe, straight))
    assert [row["step"] for row in rows] == [str(step) for step in range(1, 11)]  # the student's steps alone
    assert {"adversarial/critic_loss", "adversarial/critic_r1", "adversarial/generator"} <= set(rows[0])
    for row, other in zip(rows, expected, strict=True):
        for name in row.keys() - {"step", "seconds", "psnr"}:
            assert float(row[name]) == pytest.approx(float(other[name]), abs=1e-6), (name, row["step"])
    one, two = (
        load_checkpoint(Path(r.output_dir) / "checkpoints" / "one_step.ckpt") for r in (recipe, straight)
    )
    critic = {name for name in one["state_dict"] if name.startswith("objectives.adversarial.critic.")}
    assert critic and critic == {n for n in one["state_dict"] if not n.startswith("student.")}
    assert all(torch.allclose(one["state_dict"][n], two["state_dict"][n], atol=1e-6) for n in critic)
    assert not any(n.startswith("objectives") for n in one["callbacks"]["EMACallback"]["average"])
    steps = one["critics"]["adversarial"]["state"][0]["step"]
    assert int(steps) == 20 and one["global_step"] == 10


def test_a_new_objective_with_a_critic_is_one_entry(new_run, monkeypatch):
    class Nudge(Follower):
        def critic_loss(self, ctx):
            return {"gap": (self.value - ctx.picture.detach().mean()) ** 2}

        def forward(self, ctx):
            return {"pull": (ctx.picture.mean() - self.value.detach()) ** 2}

    monkeypatch.setitem(OBJECTIVES, "nudge", Nudge)
    recipe = run_with_critics(new_run, "nudge", "bf16", nudge={"updates": 2}, adversarial={"weight": 0})
    recipe.one_step.steps, recipe.one_step.preview_every = 2, 100
    figures = distill.run(recipe, progress=False, resume="never")["stages"]["one_step"]["figures"]
    assert {"nudge/critic_gap", "nudge/pull"} <= set(figures["last_step"])


@pytest.mark.slow
def test_all_objectives_together_on_a_low_rank_student_of_two_steps(new_run):
    pytest.importorskip("peft")
    recipe = new_run("all")
    recipe.dtype, recipe.student.num_steps, recipe.student.interval = "bf16", 2, True
    recipe.student.lora, recipe.student.gradient_checkpointing = LoRAConfig(rank=2), True
    recipe.one_step.steps, recipe.one_step.batch_size, recipe.one_step.preview_every = 2, 2, 100
    recipe.one_step.objectives = CRITICS | {
        "distribution": {"guidance_scale": 1.0, "decoupled": True, "critic_updates": 1},
        "mean_flow": {"perceptual": 0.1},
        "drift": {"features": "transformer@0"},
    }
    result = distill.run(recipe, progress=False, resume="never")
    last = result["stages"]["one_step"]["figures"]["last_step"]
    assert {"distribution/gap", "distribution/critic_flow", "mean_flow/velocity", "drift/drift"} <= set(last)
    student = load_student(result["student"])
    assert student.spec.interval and student.spec.num_steps == 2
    assert lora_of(student)["rank"] == 2 and student.core.span_embedder.mlp[-1].weight.abs().max() > 0
