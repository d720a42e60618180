"""Memory that runs out in a stage ends in one line that says what to lower, and what is done is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from l2p.errors import UserError, out_of_memory
from l2p.objectives import PairsObjective
from l2p.recipe import LoRAConfig, Recipe, StageConfig, StudentConfig
from l2p.training import distill
from l2p.training.advice import advice
from l2p.training.engine.sharded import load_checkpoint


def a_real_one() -> Exception:
    """What torch raises for more memory than there is."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**58, dtype=torch.uint8)
    return caught.value


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        RuntimeError("MPS backend out of memory (MPS allocated: 9.07 GB)"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_what_counts_as_memory_that_ran_out(error):
    assert out_of_memory(error) and out_of_memory(a_real_one())
    wrapped = UserError("cannot load the teacher")
    wrapped.__cause__ = error
    assert out_of_memory(wrapped)
    assert not out_of_memory(RuntimeError("shapes do not match")) and not out_of_memory(None)


def test_in_the_middle_of_training(new_run, l2p, tmp_path, monkeypatch):
    recipe, calls = new_run(), []
    OmegaConf.save(OmegaConf.structured(recipe), tmp_path / "recipe.yaml")
    loss = PairsObjective.forward

    def burst(self, *rest, **given):
        calls.append(1)
        if len(calls) == 7:
            raise a_real_one()
        return loss(self, *rest, **given)

    monkeypatch.setattr(PairsObjective, "forward", burst)
    code, _, err = l2p("distill", tmp_path / "recipe.yaml")
    line = err.splitlines()[-1]
    assert code == 2 and line.startswith(
        "l2p: out of memory in the stage one_step: take a smaller one_step.batch_size (3)"
    )
    assert "student.gradient_checkpointing=true" in line and "l2p plan" in line and "Traceback" not in err
    assert load_checkpoint(Path(recipe.output_dir) / "checkpoints" / "one_step.ckpt")["l2p"]["step"] == 5
    monkeypatch.setattr(PairsObjective, "forward", loss)
    assert distill.run(recipe, progress=False)["stages"]["one_step"]["figures"]["steps"] == 10


def test_the_advice_fits_the_recipe():
    recipe = Recipe(name="x", one_step=StageConfig(batch_size=1))
    assert "one_step.batch_size" not in advice("one_step", recipe)  # there is nothing to lower
    assert "a smaller corpus.batch_size (25)" in advice("lift", recipe)
    assert "a smaller evaluation.batch_size (32)" in advice("evaluation", recipe)
    recipe.student = StudentConfig(gradient_checkpointing=True, lora=LoRAConfig())
    told = advice("match", recipe)
    assert (
        "gradient_checkpointing" not in told
        and "lora" not in told
        and "smaller match.batch_size (32)" in told
    )
    recipe.student = StudentConfig(core="large")
    assert "a smaller student.core (large)" in advice("match", recipe)
