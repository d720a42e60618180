"""A kill before any file operation of a command: run again, it gives what the undisturbed run gives, and nothing else stays."""

from __future__ import annotations

import shutil

import pytest

from tests.faults import injection
from tests.faults.jobs import leftovers

MOST = 12  # kills of one command in the long form


def spread(count: int, most: int) -> list[int]:
    """Up to `most` of `count` places, the first and the last among them."""
    return sorted({round(i * (count - 1) / max(1, most - 1)) for i in range(min(most, count))})


def check_kills(world, name: str, most: int) -> None:
    world.undisturbed(name)
    world.clean()
    kept = world.place / "snapshots"
    shutil.rmtree(kept, ignore_errors=True)
    assert world.run(name, injection.snapshots(world.root, kept)).code == 0
    states = sorted(kept.iterdir())
    assert any(leftovers(state) for state in states), "no kill fell into a write"
    for place in spread(len(states), most):
        world.put(states[place])
        world.check_resumed(name, f"{name} killed before operation {states[place].name}")
    shutil.rmtree(kept)


def test_a_killed_command_goes_on(world):
    check_kills(world, "generate", 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["distill", "grow", "train-head", "generate", "evaluate", "export"])
def test_a_kill_before_every_file_operation(world, name):
    check_kills(world, name, MOST)


@pytest.mark.slow
def test_a_true_kill_leaves_no_more_than_a_snapshot_shows(world):
    world.undisturbed("distill")
    world.clean()
    killed = world.run("distill", injection.kill_at(world.root, 120))
    assert (
        killed.code == -9
        and (world.out / "checkpoints").is_dir()
        and not (world.out / "report.html").exists()
    )
    world.check_resumed("distill", "distill killed at its 120th file operation")
