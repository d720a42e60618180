"""How Lightning divides a stage's training among the processes: not at all, by DDP, or by FSDP2.

Notable:
- FSDP2 shards each repeating block of core and head, and what is left of the two, by rows (torch's `fully_shard`). Weights,
  gradients, optimiser states and the average are then a share each; arithmetic and results stay those of one process.
- A checkpoint of shards holds the very dictionary that one process would keep (training/engine/sharded.py), so a run may go on
  on any number of processes, under either strategy or alone.
- A teacher may be sharded too, its frozen blocks gathered one at a time, or its shards kept in the CPU's memory.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    TorchElasticEnvironment,
)
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from l2p import distributed
from l2p.students.student import PixelStudent
from l2p.training.engine.sharded import is_sharded, load_checkpoint, save_sharded, shard


class Sharded(ModelParallelStrategy):
    """FSDP2 of a student that is sharded already, with checkpoints of our own."""

    def __init__(self, size: int, **settings: Any) -> None:
        super().__init__(data_parallel_size=size, tensor_parallel_size=1, **settings)

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True  # its states are in the checkpoint's dictionary, as in that of one process

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return self.lightning_module.state_dict()

    def load_model_state_dict(self, checkpoint: Any, strict: bool = True) -> None:
        self.lightning_module.load_state_dict(checkpoint["state_dict"], strict=strict)

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        inner = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        return inner.state_dict()

    def load_optimizer_state_dict(self, checkpoint: Any) -> None:
        Strategy.load_optimizer_state_dict(self, checkpoint)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        save_sharded(checkpoint, Path(filepath))

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """A checkpoint of shards or of one process, each tensor that is sharded here as this process' shard."""
        mesh = mesh_of(self.root_device)
        checkpoint = load_checkpoint(Path(checkpoint_path), mesh=mesh)
        sharded = {name for name, value in self.lightning_module.state_dict().items() if is_sharded(value)}
        for name in sharded & checkpoint["state_dict"].keys():
            checkpoint["state_dict"][name] = shard(checkpoint["state_dict"][name], mesh)
        average = checkpoint["callbacks"]["EMACallback"]["average"]
        average.update({name: shard(value, mesh) for name, value in average.items()})
        for optimizer in checkpoint["optimizer_states"]:
            for state in optimizer["state"].values():  # those with axes are shaped as their parameter
                state.update({k: shard(v, mesh) for k, v in state.items() if getattr(v, "ndim", 0)})
        return checkpoint


def trainer_settings(strategy: str, device: torch.device) -> dict[str, Any]:
    """Arguments of Lightning's `Trainer` that say on what it runs; `strategy` is "one" process, "ddp" or "fsdp"."""
    accelerator = "gpu" if device.type == "cuda" else device.type
    here = distributed.place()
    if strategy == "one":
        devices = [device.index or 0] if device.type == "cuda" else 1
        return {"accelerator": accelerator, "devices": devices}
    chosen: Strategy = Sharded(here.size)
    if strategy == "ddp":
        # A stage may leave parts of the student alone, such as the head while the core learns latents.
        chosen = DDPStrategy(find_unused_parameters=True, broadcast_buffers=False)
    return {
        "accelerator": accelerator,
        "devices": here.local_size,
        "num_nodes": here.nodes,
        "strategy": chosen,
    }


def environment(strategy: str) -> ClusterEnvironment:
    """Who started the processes; on a single one a cluster's handling of signals stays out."""
    return LightningEnvironment() if strategy == "one" else TorchElasticEnvironment()


def mesh_of(device: torch.device) -> DeviceMesh:
    """All processes in a row."""
    return init_device_mesh(device.type, (distributed.size(),))


def shard_student(student: PixelStudent, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
    """Keep a share of every weight of core and head here, on `device`; the others have the rest.

    Args:
        dtype: of the arithmetic. On a GPU weights are gathered in it, half of the traffic, and gradients summed in fp32; on a
            CPU autocast casts what it gathered.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    mesh = mesh_of(device)
    policy = MixedPrecisionPolicy()
    if device.type == "cuda" and dtype != torch.float32:
        policy = MixedPrecisionPolicy(
            param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
    # It warns that what a part gives back is a view, which must not be changed in place: nothing here does.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    for part, blocks in ((student.core, student.core.blocks), (student.head, repeating(student.head))):
        for block in blocks:
            fully_shard(block, mesh=mesh, mp_policy=policy)
        # Or it would stay whole after a pass without a backward one, and be no shard to whoever looks at its weights.
        fully_shard(part, mesh=mesh, reshard_after_forward=True, mp_policy=policy)
    if hasattr(student.head, "latents"):
        register_fsdp_forward_method(student.head, "latents")
    student.to(device)


def shard_frozen(
    network: nn.Module, device: torch.device, offload: bool, blocks: Sequence[nn.Module] | None = None
) -> None:
    """Shard the repeating blocks of a frozen network, each gathered for its own pass and let go after it.

    Args:
        offload: the shards wait in the CPU's memory.
        blocks: those that repeat; the members of its lists if None. The rest goes to the device.
    """
    from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard

    policy, mesh = (
        CPUOffloadPolicy(pin_memory=device.type == "cuda") if offload else OffloadPolicy(),
        mesh_of(device),
    )
    for block in repeating(network) if blocks is None else blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=True, offload_policy=policy)


def repeating(network: nn.Module) -> list[nn.Module]:
    """The members of a network's lists: the blocks that repeat. Lists within blocks belong to their block."""
    found: list[nn.Module] = []
    for child in network.children():
        found += list(child) if isinstance(child, nn.ModuleList) else repeating(child)
    return [block for block in found if any(True for _ in block.parameters())]
