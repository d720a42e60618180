"""A run's folder from a stranger: its checkpoints run no code, whatever stands in the pickle of a sharded one."""

from __future__ import annotations

import os
import pickle

import pytest
import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

from l2p.errors import UserError
from l2p.training.engine.sharded import LATEST, load_checkpoint, save_sharded, step_of

STATE = {"global_step": 3, "l2p": {"step": 3}, "state_dict": {"a": torch.arange(6.0).reshape(2, 3)}}


@pytest.fixture
def shards(tmp_path):
    folder = tmp_path / "one_step.shards"
    folder.mkdir()
    save_sharded(STATE, folder)
    return folder


class Runs:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_an_honest_checkpoint_is_read(shards):
    assert torch.equal(load_checkpoint(shards)["state_dict"]["a"], STATE["state_dict"]["a"])
    assert step_of(shards) == 3


def _changed(path, change):
    metadata = pickle.loads(path.read_bytes())
    change(metadata)
    path.write_bytes(pickle.dumps(metadata))


def _bytes_entry(metadata):
    metadata.state_dict_metadata["state_dict/a"] = BytesStorageMetadata()


def _elsewhere(metadata):
    for info in metadata.storage_data.values():
        info.relative_path = "../../elsewhere"


@pytest.mark.parametrize("only", [(), None])
@pytest.mark.parametrize("attack", ["whole", "inside", _bytes_entry, _elsewhere])
def test_the_pickle_of_a_sharded_checkpoint_runs_nothing(shards, tmp_path, attack, only):
    path, evil = shards / "step-000003" / ".metadata", Runs(f"{tmp_path}/ran")
    if attack == "whole":
        path.write_bytes(pickle.dumps(evil))
    elif attack == "inside":
        _changed(path, lambda metadata: setattr(metadata, "planner_data", evil))
    else:
        _changed(path, attack)
    with pytest.raises(UserError, match=r"\.metadata") as caught:
        load_checkpoint(shards, only)
    assert "\n" not in str(caught.value) and not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["../elsewhere", "/etc", "step-3/../../elsewhere", "step-", "", "x" * 10**6])
def test_the_latest_step_lies_beside_its_name(shards, tmp_path, name):
    (shards / "step-000003").rename(tmp_path / "elsewhere")
    (shards / LATEST).write_text(name)
    for read in (load_checkpoint, step_of):
        with pytest.raises(UserError, match="expected a folder beside it"):
            read(shards)
