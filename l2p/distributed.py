"""Several processes that train one student: who this one is, and the few things they say to each other.

`torchrun` or `srun` starts them (docs/scale.md); a process alone pays nothing for any of this. What the processes have to
agree on goes through here: a rank that decided alone would leave the others waiting for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from l2p.errors import UserError

T = TypeVar("T")

_waiting: dist.ProcessGroup | None = (
    None  # of those who wait for the first process' work, however long it takes
)


@dataclass(frozen=True)
class WorldInfo:
    """This process among those that were launched together.

    Attributes:
        rank, size: its number among all, and how many there are.
        local_rank, local_size: the same on its machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def nodes(self) -> int:
        return self.size // self.local_size


def place() -> WorldInfo:
    """As the launcher says: torchrun's variables, or those of a job step of SLURM's `srun`; alone without either.

    Raises:
        UserError: variables that are no numbers or contradict each other.
    """
    if "SLURM_STEP_NUM_TASKS" in os.environ and "RANK" not in os.environ:
        _as_torchrun()
    names = {
        "rank": "RANK",
        "size": "WORLD_SIZE",
        "local_rank": "LOCAL_RANK",
        "local_size": "LOCAL_WORLD_SIZE",
    }
    if not {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        return WorldInfo()
    try:
        found = WorldInfo(**{key: int(os.environ[name]) for key, name in names.items() if name in os.environ})
    except ValueError:
        raise UserError(f"{', '.join(names.values())} must be numbers: start with torchrun or srun") from None
    if not 0 <= found.rank < found.size or found.size % found.local_size:
        raise UserError(
            f"process {found.rank} of {found.size}, {found.local_size} a machine: start the same number on every one"
        )
    return found


def _as_torchrun() -> None:
    """Say in torchrun's variables what `srun` says in its own."""
    from lightning.pytorch.plugins.environments import SLURMEnvironment

    size, nodes = os.environ["SLURM_STEP_NUM_TASKS"], os.environ.get("SLURM_STEP_NUM_NODES", "1")
    machines = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_NODELIST", "127.0.0.1")
    said = {
        "RANK": os.environ["SLURM_PROCID"],
        "WORLD_SIZE": size,
        "LOCAL_RANK": os.environ["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(int(size) // int(nodes)),
        "GROUP_RANK": os.environ["SLURM_NODEID"],
        "MASTER_ADDR": SLURMEnvironment.resolve_root_node_address(machines),
        "MASTER_PORT": str(
            15_000 + int(os.environ.get("SLURM_JOB_ID", "0")[-4:])
        ),  # jobs on one machine do not meet
    }
    for name, value in said.items():
        os.environ.setdefault(name, value)


def rank() -> int:
    """Number of this process once they have met, 0 before that."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """How many processes have met; 1 before that."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def process_group(device: torch.device, timeout_minutes: float) -> Iterator[None]:
    """Inside the `with` the launched processes can speak to each other; a process alone goes straight on, and so do
    processes that have met already.

    Args:
        device: of this process.
        timeout_minutes: how long a process waits for the others within a training step.

    Raises:
        UserError: the others did not come, or one of them ended while this one needed it.
    """
    global _waiting
    here = place()
    if here.size == 1 or dist.is_initialized():
        yield
        return
    timeout = timedelta(minutes=timeout_minutes)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        store, _, _ = next(dist.rendezvous("env://", here.rank, here.size, timeout=timeout))
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(
            backend,
            store=dist.PrefixStore("l2p", store),
            rank=here.rank,
            world_size=here.size,
            timeout=timeout,
        )
        _waiting = dist.new_group(backend="gloo", timeout=timedelta(days=30))
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(
            f"{here.size} processes could not meet at {os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')} "
            f"({str(error).splitlines()[0]}): see that all were started and can reach that port"
        ) from error
    try:
        yield
        dist.barrier(_waiting)
    except RuntimeError as error:
        if not _is_loss(error):
            raise
        raise UserError(
            f"a process of the {here.size} has ended, so the run stops; checkpoints are whole: "
            "run the same command again to go on from the last one"
        ) from error
    dist.destroy_process_group()
    _waiting = None


def _is_loss(error: RuntimeError) -> bool:
    """Whether an error says that another process could not be reached any more."""
    told = str(error)
    return isinstance(error, dist.DistError) or "gloo/transport" in told or "gloo/rendezvous" in told


def run_on_rank0(work: Callable[[], T]) -> T:
    """What `work` gives in the first process, in all of them; the others wait for it, for days if need be.

    The result must be picklable. A UserError of the first process is raised in all.
    """
    if size() == 1:
        return work()
    answer: list[Any] = [None]
    if rank() == 0:
        try:
            answer = [(work(), None)]
        except UserError as error:
            answer = [(None, str(error))]
    dist.broadcast_object_list(answer, 0, group=_waiting)
    result, failure = answer[0]
    if failure is not None:
        raise UserError(failure)
    return result


def all_reduce_any(flag: bool) -> bool:
    """Whether any process says so."""
    if size() == 1:
        return flag
    said = torch.tensor(int(flag))
    dist.all_reduce(said, dist.ReduceOp.MAX, group=_waiting)
    return bool(said)


def mean(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """Scalars of all processes, by name, averaged; all have the same names."""
    if size() == 1 or not terms:
        return terms
    values = torch.stack([value.float() for value in terms.values()])
    dist.all_reduce(values)
    return dict(zip(terms, values / size(), strict=True))


def gather(x: Tensor, dim: int) -> Tensor:
    """The processes' tensors, all of one shape, joined along `dim` in the order of their numbers; without gradient."""
    if size() == 1:
        return x
    x = x.detach().contiguous()
    parts = [torch.empty_like(x) for _ in range(size())]
    dist.all_gather(parts, x)
    return torch.cat(parts, dim)


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Bring gradients that no strategy of Lightning's cares for to their mean over the processes."""
    if size() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= size()
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))
