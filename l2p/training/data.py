"""Pairs from a corpus, in an order that is a pure function of (seed, stage, step).

Nothing about the order is ever stored: step n of a resumed run draws the very batch that step n of an undisturbed run
would have drawn. Noise is drawn from each pair's own seed, so it needs no storage either.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from l2p import distributed
from l2p.errors import UserError
from l2p.images import from_uint8
from l2p.noise import pixel_noise
from l2p.objectives.base import FULL_BATCH, Batch, BatchShard
from l2p.runtime import usable_cores
from l2p.seeds import derive_seed

RAM_BUDGET = 2 * 1024**3  # bytes; a corpus below this is read once and kept


def shares_of(batch_size: int, accumulate: int) -> list[BatchShard]:
    """This process' parts of a step's batch, `accumulate` of them.

    Raises:
        UserError: the batch cannot be divided so.
    """
    size = max(distributed.size(), distributed.place().size)  # the processes may not have met yet
    count = size * accumulate
    if batch_size % count:
        raise UserError(
            f"batch_size is {batch_size}, which {size} processes with accumulate={accumulate} cannot share "
            f"evenly: take a multiple of {count}"
        )
    return [BatchShard(distributed.rank() * accumulate + part, count) for part in range(accumulate)]


def step_generator(seed: int, stage: str, step: int) -> torch.Generator:
    """CPU generator of every random number that step `step` of a stage draws."""
    return torch.Generator().manual_seed(derive_seed(seed, stage, step))


class StepSampler(Sampler[list[int]]):
    """Batches for steps start..total - 1: epochs of fresh permutations laid end to end, cut into batches.

    A batch may span two epochs, so no remainder is lost and every batch is full, whatever the corpus' size.
    Its length is that of the whole stage, whatever `start` is: so does Lightning count batches.

    Args:
        shares: the parts of each step's batch that this process draws, one after the other.
    """

    def __init__(
        self,
        indices: Sequence[int],
        batch_size: int,
        seed: int,
        stage: str,
        total_steps: int,
        start: int = 0,
        shares: Sequence[BatchShard] = (FULL_BATCH,),
    ):
        self.indices, self.batch_size, self.seed, self.stage = list(indices), batch_size, seed, stage
        self.total_steps, self.start, self.shares = total_steps, start, shares
        self._permutations: dict[int, list[int]] = {}

    def __len__(self) -> int:
        return self.total_steps * len(self.shares)

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start, self.total_steps):
            batch = self.batch(step)
            for share in self.shares:
                yield batch[share.of(len(batch))]

    def batch(self, step: int) -> list[int]:
        """Indices of one step's batch."""
        first = step * self.batch_size
        return [self._at(position) for position in range(first, first + self.batch_size)]

    def _at(self, position: int) -> int:
        epoch, place = divmod(position, len(self.indices))
        if epoch not in self._permutations:
            generator = step_generator(self.seed, f"{self.stage}/epoch", epoch)
            order = torch.randperm(len(self.indices), generator=generator).tolist()
            self._permutations = {e: p for e, p in self._permutations.items() if e == epoch - 1} | {
                epoch: order
            }
        return self.indices[self._permutations[epoch][place]]


@dataclass(frozen=True)
class PairNoise:
    """The pixel noise of pairs by their seeds, see :mod:`l2p.noise`.

    Args:
        generator: that of the corpus.
        basis: A [3 p^2, d] of the lift, on the device of the training.
    """

    generator: str
    basis: Tensor

    def collate(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Items of a corpus to images [B, 3, H, W] in [-1, 1], latents, seeds and prompts, in a worker's process.

        With the noise where its generator belongs to the CPU.
        """
        images, seeds = from_uint8(_stack([item["image"] for item in items])), [int(i["seed"]) for i in items]
        batch = {
            "images": images,
            "latents": torch.stack([torch.as_tensor(item["latent"], dtype=torch.float32) for item in items]),
            "seeds": seeds,
            "prompts": [item["prompt"] for item in items],
        }
        if self.generator == "mt19937":
            batch["noise"] = pixel_noise(self.generator, seeds, *images.shape[-2:], self.basis.cpu())
        return batch

    def of(self, batch: dict[str, Any]) -> Tensor:
        """The noise [B, 3, H, W] of a collated batch, on its device."""
        images = batch["images"]
        if "noise" in batch:
            return batch["noise"]
        basis = self.basis.to(images.device)
        return pixel_noise(self.generator, batch["seeds"], *images.shape[-2:], basis)


def _stack(images: Sequence[Any]) -> Any:
    return torch.stack([torch.as_tensor(image) for image in images]).numpy()


class DistillDataModule(pl.LightningDataModule):
    """Batches of teacher pairs for one stage.

    Args:
        dataset: map-style corpus; items are dicts of image (uint8 [H, W, 3]), latent, seed and prompt. A list is
            read in this process, anything else by workers.
        teacher: encodes the prompts (`encode_prompts`), each of them once.
        held_out: pairs at the corpus' end that are never trained on.
        shares: the parts of each step's batch that this process trains on.
        noise: what draws the pairs' noise.
    """

    def __init__(
        self,
        dataset: Dataset | list[dict[str, Any]],
        teacher: Any,
        batch_size: int,
        seed: int,
        stage: str,
        total_steps: int,
        held_out: int = 0,
        shares: Sequence[BatchShard] = (FULL_BATCH,),
        *,
        noise: PairNoise | None,
    ):
        super().__init__()
        self.dataset, self.teacher, self.batch_size, self.noise = dataset, teacher, batch_size, noise
        self.seed, self.stage_name, self.total_steps = seed, stage, total_steps
        self.indices, self.shares = range(len(dataset) - held_out), shares

    def setup(self, stage: str) -> None:
        if not isinstance(self.dataset, list):
            return
        # In the corpus' order, not the batches': an encoding may depend in its last bit on its neighbours in a batch,
        # and a resumed run must meet the same bits.
        prompts = list(dict.fromkeys(item["prompt"] for item in self.dataset))
        for start in range(0, len(prompts), 256):
            self.teacher.encode_prompts(prompts[start : start + 256])
        self.teacher.text_encoder.park()  # all prompts of the stage are read

    def train_dataloader(self) -> DataLoader:
        start = self.trainer.global_step if self.trainer is not None else 0
        sampler = StepSampler(
            self.indices,
            self.batch_size,
            self.seed,
            self.stage_name,
            self.total_steps,
            start,
            self.shares,
        )
        workers = 0 if isinstance(self.dataset, list) else max(1, min(8, usable_cores() - 1))
        return DataLoader(
            self.dataset,
            batch_sampler=sampler,
            collate_fn=self.noise.collate,
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
        )

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> Batch:
        return self.to_batch(batch)

    def to_batch(self, batch: dict[str, Any]) -> Batch:
        """A collated batch, on the device, with its prompts encoded."""
        conditioning = self.teacher.encode_prompts(batch["prompts"]).to(batch["images"].device)
        return Batch(
            images=batch["images"],
            latents=batch["latents"],
            noise=self.noise.of(batch),
            conditioning=conditioning,
        )


def held_out_batch(
    dataset: Dataset | list[dict[str, Any]], teacher: Any, count: int, device: torch.device, noise: PairNoise
) -> tuple[Batch, list[str]]:
    """The corpus' last `count` pairs as one batch on the device, and their prompts."""
    items = noise.collate([dataset[i] for i in range(len(dataset) - count, len(dataset))])
    moved = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in items.items()}
    conditioning = teacher.encode_prompts(moved["prompts"]).to(device)
    batch = Batch(
        images=moved["images"], latents=moved["latents"], noise=noise.of(moved), conditioning=conditioning
    )
    return batch, items["prompts"]


def in_memory(dataset: Dataset) -> Dataset | list[dict[str, Any]]:
    """The dataset, or all its items as a list where they fit into `RAM_BUDGET`."""
    item = dataset[0]
    size = sum(torch.as_tensor(item[name]).nbytes for name in ("image", "latent"))
    return dataset if size * len(dataset) > RAM_BUDGET else [dataset[i] for i in range(len(dataset))]
