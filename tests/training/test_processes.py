"""Two processes train as one: the same losses, the same weights, checkpoints that pass from one number to another.

Each run here is the real command in processes of their own, as torchrun would start them, over gloo on the CPU.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from l2p.distributed import WorldInfo, place
from l2p.errors import UserError
from l2p.recipe import Recipe
from l2p.training.engine.log import read_log
from l2p.training.engine.sharded import load_checkpoint, step_of

COMMAND = """
import os, signal, sys
from dataclasses import replace
from l2p.files import write_json
from l2p.training import stages
from l2p.training.engine.callbacks import Interrupt

def skip(run, previous):
    write_json(run.folder.path / "metrics.json", {})
    return {}, []

def act(self, trainer, module):
    before(self, trainer, module)
    if os.environ.get("AT") == f"{os.environ.get('RANK', 0)}/{trainer.global_step}":
        os.kill(os.getpid(), getattr(signal, os.environ["SIGNAL"]))

stages.STAGES["evaluation"] = replace(stages.STAGES["evaluation"], run=skip)
before, Interrupt.after_step = Interrupt.after_step, act
from l2p.cli.main import main
sys.exit(main(["distill", *sys.argv[1:]]))
"""
# With all pictures at stake for the costly term, some processes get none of the chosen ones.
PAIRS = {"weight": 1.0, "perceptual_fraction": 0.25}
# The pictures of a batch are compared, and a network of the objective's own trains beside the student.
CROWD = {
    "pairs": PAIRS,
    "drift": {"weight": 0.1, "grids": [1]},
    "adversarial": {"weight": 0.1, "width": 8, "feature_scale": 0.5},
}


def launch(
    recipe: Recipe | None,
    size: int,
    *overrides: str,
    command: str = COMMAND,
    timeout: float = 600,
    **environment: str,
) -> list[tuple[int, str]]:
    """Run the command in `size` processes; (exit code, stderr) of each, by rank."""
    words = list(overrides)
    if recipe is not None:
        words.insert(0, str(Path(recipe.output_dir).with_suffix(".yaml")))
        OmegaConf.save(OmegaConf.structured(recipe), words[0])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = []
    for rank in range(size):
        here = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size}
        here |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        known = os.environ | {"OMP_NUM_THREADS": "1"} | environment
        known |= {name: str(value) for name, value in here.items()} if size > 1 else {}
        called = [sys.executable, "-c", command, *words]
        started.append(subprocess.Popen(called, env=known, stderr=subprocess.PIPE, text=True))
    end, answers = time.monotonic() + timeout, []
    try:
        for process in started:
            _, told = process.communicate(timeout=max(1, end - time.monotonic()))
            answers.append((process.returncode, told))
    finally:
        for process in started:
            process.kill()
    return answers


def assert_ended_well(answers) -> None:
    for code, told in answers:
        assert code == 0, told


def losses(recipe: Recipe, stage: str) -> list[dict[str, float]]:
    rows = read_log(Path(recipe.output_dir) / "logs" / f"{stage}.csv")
    return [{name: float(row[name]) for name in row.keys() - {"seconds", "psnr"}} for row in rows]


def assert_same(recipe: Recipe, alone: Recipe, stage: str, tolerance: float) -> None:
    """Every logged number but the seconds, to a relative tolerance."""
    one, two = losses(recipe, stage), losses(alone, stage)
    assert [row["step"] for row in one] == [row["step"] for row in two] != []
    for row, other in zip(one, two, strict=True):
        for name in row:
            near = 10 * tolerance if name == "grad_norm" else tolerance
            assert row[name] == pytest.approx(other[name], rel=near, abs=1e-7), (name, row["step"])


def twenty_steps(recipe: Recipe) -> Recipe:
    stage = recipe.one_step
    stage.steps, stage.batch_size, stage.checkpoint_every, stage.preview_every = 20, 4, 5, 10
    stage.objectives = {"pairs": PAIRS, "flow": {"weight": 0.5}}
    # What is added in another order differs in the last digit, and each step of training magnifies that: at ten times this
    # rate, a thousandfold within the twenty steps, Muon's bf16 helping.
    stage.learning_rate = 1e-4
    stage = recipe.match
    stage.enabled, stage.steps, stage.batch_size, stage.optimizer = True, 4, 4, "adamw"
    stage.learning_rate, stage.objectives = 1e-5, CROWD
    return recipe


@pytest.fixture(scope="session")
def alone(another_run) -> Recipe:
    """A run of twenty steps in one process."""
    recipe = twenty_steps(another_run("alone"))
    assert_ended_well(launch(recipe, 1))
    return recipe


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_have_the_losses_of_one(new_run, alone, strategy):
    recipe = twenty_steps(new_run(strategy))
    assert_ended_well(launch(recipe, 2, f"parallel.strategy={strategy}"))
    assert_same(recipe, alone, "one_step", 1e-5)
    assert_same(recipe, alone, "match", 1e-4)  # drifting scales small differences of distances to unit size


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(new_run, alone):
    """2 sharded -> 1 -> 2 whole; each part is stopped in one process alone, and all of them keep the same step."""
    recipe = twenty_steps(new_run())
    recipe.match.enabled = False
    checkpoints = Path(recipe.output_dir) / "checkpoints"
    stopped = launch(recipe, 2, "parallel.strategy=fsdp", AT="1/7", SIGNAL="SIGTERM")
    assert [code for code, _ in stopped] == [130, 130], stopped
    assert [f"l2p: rank {rank}: stopped" in told for rank, (_, told) in enumerate(stopped)] == [True, True]
    assert [path.name for path in checkpoints.iterdir()] == ["one_step.shards"]
    assert step_of(checkpoints / "one_step.shards") == 8

    ((code, told),) = launch(recipe, 1, AT="0/13", SIGNAL="SIGINT")
    assert code == 130, told
    assert [path.name for path in checkpoints.iterdir()] == ["one_step.ckpt"]
    assert step_of(checkpoints / "one_step.ckpt") == 14

    assert_ended_well(launch(recipe, 2, "parallel.strategy=fsdp", "parallel.teacher=offloaded"))
    assert_same(recipe, alone, "one_step", 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_killed_process_ends_the_run_and_leaves_a_whole_checkpoint(new_run, alone, strategy):
    recipe = twenty_steps(new_run())
    recipe.match.enabled = False
    (code, told), (killed, _) = launch(
        recipe, 2, f"parallel.strategy={strategy}", timeout=120, AT="1/7", SIGNAL="SIGKILL"
    )
    assert (code, killed) == (2, -signal.SIGKILL), told
    lines = [line for line in told.splitlines() if line.startswith("l2p: ")]
    assert len(lines) == 1 and "a process of the 2 has ended" in lines[0] and "Traceback" not in told
    (kept,) = (Path(recipe.output_dir) / "checkpoints").iterdir()
    assert step_of(kept) == 5
    assert all(v.isfinite().all() for v in load_checkpoint(kept)["state_dict"].values())
    assert_ended_well(launch(recipe, 1))
    assert_same(recipe, alone, "one_step", 1e-5)


@pytest.mark.slow
def test_not_a_number_in_one_process_stops_both(new_run):
    recipe = twenty_steps(new_run())
    poisoned = COMMAND.replace(
        "before, Interrupt",
        """
from l2p.objectives import PairsObjective
right = PairsObjective.forward

def spoil(self, ctx):
    terms = right(self, ctx)
    if ctx.step == 6 and os.environ["RANK"] == "1":
        terms["pixel"] = terms["pixel"] * float("nan")
    return terms

PairsObjective.forward = spoil
before, Interrupt""",
    )
    answers = launch(recipe, 2, command=poisoned)
    assert [code for code, _ in answers] == [2, 2], answers
    lines = [line for _, told in answers for line in told.splitlines() if line.startswith("l2p: ")]
    expected = "one_step stopped at step 6: the loss is nan (from pairs/pixel)"
    assert len(lines) == 2 and all(f"l2p: rank {rank}: {expected}" in lines[rank] for rank in (0, 1)), lines


TALK = """
import os, sys, torch
from l2p import distributed
from l2p.errors import UserError

here = distributed.place()
with distributed.process_group(torch.device("cpu"), 1.0):
    rank = distributed.rank()
    assert (rank, distributed.size()) == (here.rank, 2)
    assert distributed.all_reduce_any(rank == 1) and not distributed.all_reduce_any(False)
    assert distributed.mean({"a": torch.tensor(float(rank)), "b": torch.tensor(3.0)}) == {"a": 0.5, "b": 3.0}
    assert distributed.gather(torch.full((2, 1), rank), 1).tolist() == [[0, 1], [0, 1]]
    assert distributed.run_on_rank0(lambda: {"rank": rank}) == {"rank": 0}
    layer = torch.nn.Linear(1, 1)
    layer.weight.grad = torch.full((1, 1), float(rank))
    distributed.average_gradients(layer.parameters())
    assert layer.weight.grad.item() == 0.5 and layer.bias.grad is None

    def fail():
        raise UserError("only the first knows")

    try:
        distributed.run_on_rank0(fail)
    except UserError as error:
        assert str(error) == "only the first knows"
    if rank == 1:
        os._exit(7)
    try:
        torch.distributed.barrier()
    except RuntimeError as error:
        assert distributed._is_loss(error), error
        print("lost", file=sys.stderr)
        os._exit(0)
"""


def test_what_two_processes_say_to_each_other(tmp_path):
    (code, first), (other, second) = launch(None, 2, command=TALK, timeout=60)
    assert (code, other) == (0, 7), first + second
    assert [*first.split(), *second.split()] == ["lost"]


def test_every_process_prints_why_it_fails_also_before_they_have_met():
    command = "import sys; from l2p.cli.main import main; sys.exit(main(['distill', 'nowhere.yaml']))"
    for size, names in ((1, ["l2p: "]), (2, ["l2p: rank 0: ", "l2p: rank 1: "])):
        for (code, told), name in zip(launch(None, size, command=command), names, strict=True):
            assert code == 2 and told.count("\n") == 1
            assert told.startswith(name) and "nowhere.yaml" in told, told


@pytest.mark.parametrize(
    "variables, expected",
    [
        ({}, WorldInfo()),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, WorldInfo(3, 4, 1, 2)),
        (
            {
                "SLURM_STEP_NUM_TASKS": "4",
                "SLURM_STEP_NUM_NODES": "2",
                "SLURM_PROCID": "2",
                "SLURM_LOCALID": "0",
                "SLURM_NODEID": "1",
                "SLURM_NODELIST": "node[07-08]",
                "SLURM_JOB_ID": "17",
                "SLURM_NTASKS": "4",
                "SLURM_JOB_NAME": "l2p",
            },
            WorldInfo(2, 4, 0, 2),
        ),
    ],
    ids=["alone", "torchrun", "srun"],
)
def test_a_process_knows_its_place(monkeypatch, variables, expected):
    names = (
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "LOCAL_WORLD_SIZE",
        "GROUP_RANK",
        "MASTER_ADDR",
        "MASTER_PORT",
    )
    with monkeypatch.context() as patch:
        patch.setattr(os, "environ", {k: v for k, v in os.environ.items() if k not in names} | variables)
        assert place() == expected
        if "SLURM_PROCID" in variables:
            assert os.environ["MASTER_ADDR"] == "node07" and os.environ["GROUP_RANK"] == "1"


def test_a_place_that_cannot_be_is_one_line(monkeypatch):
    for wrong in ({"RANK": "4", "WORLD_SIZE": "4"}, {"RANK": "one", "WORLD_SIZE": "4"}):
        for name, value in wrong.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(UserError, match="start"):
            place()
