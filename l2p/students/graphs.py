"""CUDA graphs: a student's one step at one size, captured once and replayed in a single launch.

A small student on a fast GPU waits for its host, which launches some hundred kernels a picture; a graph launches them in
one call. It holds addresses and shapes: noise and captions are copied to where they lay during the capture, and another
size is captured anew. Captions of a Z-Image core are padded to a multiple of 32 tokens anyway, so one graph serves all
lengths up to its own multiple: how long each prompt is lies on the device. Other cores are captured for each length.
Every new graph has to draw other inputs than those of its capture as the student draws them, or it is refused.
(https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs)
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from l2p.errors import UserError
from l2p.students.cores.z_image import ZImageCore
from l2p.students.student import PixelStudent
from l2p.teachers.protocol import Conditioning
from l2p.teachers.z_image_forward import MULTIPLE, padded_length

WARM_UPS = 3  # steps before a capture: kernels are chosen and tables filled, which a capture must not see
TOLERANCE = 0.03  # relative RMS of a replayed picture: bf16 in another order differs by a hundredth, another picture by one
SHARE = 0.5  # of a device's memory that graphs may hold; beyond, the one that was used longest ago goes


def check_cuda_graphs(device: torch.device) -> None:
    """Raises: UserError on a device that has none."""
    if device.type != "cuda":
        raise UserError(
            f"CUDA graphs are for CUDA devices, this one is {device}: leave out --cuda-graphs, or give --device cuda"
        )


def check_one_step(num_steps: int, guidance_scale: float) -> None:
    """Raises: UserError where a picture takes more than the one pass that a graph holds."""
    if num_steps > 1 or guidance_scale > 1:
        what = f"{num_steps} steps" if num_steps > 1 else f"guidance of {guidance_scale:g}"
        raise UserError(
            f"CUDA graphs serve one step without guidance, this picture takes {what}: leave out --cuda-graphs"
        )


class _Given(TorchDispatchMode):
    """Collects the tensors that code reads and did not make: a graph has their addresses, so somebody must hold them."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: dict[int, Tensor] = {}
        self._made: dict[int, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for x in tree_leaves((args, kwargs)):
            if isinstance(x, Tensor) and (key := x.untyped_storage()._cdata) not in self._made:
                self.tensors[key] = x
        out = func(*args, **kwargs)
        for x in tree_leaves(out):
            if isinstance(x, Tensor) and (key := x.untyped_storage()._cdata) not in self.tensors:
                self._made[key] = x
        return out


@dataclass
class _Captured:
    graph: Any
    noise: Tensor
    conditioning: Conditioning
    picture: Tensor
    held: list[Tensor]  # weights and tables that the graph reads
    size: int  # bytes

    def replay(self, noise: Tensor, conditioning: Conditioning) -> Tensor:
        mine = self.conditioning
        self.noise.copy_(noise)
        mine.embeds[:, : conditioning.embeds.shape[1]].copy_(conditioning.embeds)
        if mine.pooled is not None:
            mine.pooled.copy_(conditioning.pooled)
        if mine.device_lengths is not None:
            for row, length in enumerate(conditioning.lengths.tolist()):
                mine.device_lengths[row].fill_(
                    length
                )  # an argument of a kernel: nothing is copied from the host
        self.graph.replay()
        return self.picture.clone()


class StepGraphs:
    """``(noise [B, 3, H, W], captions) -> x_0 [B, 3, H, W]``, a student's one step from pure noise by a graph.

    Autocast and the head's ``band_height`` are those of the first call of a shape.
    """

    def __init__(self, student: PixelStudent) -> None:
        self.student = student
        self._captured: OrderedDict[tuple, _Captured] = OrderedDict()

    @torch.no_grad()
    def __call__(self, noise: Tensor, conditioning: Conditioning) -> Tensor:
        """The picture. Raises: UserError where a step cannot be captured, or a graph draws another picture."""
        lengths = self._lengths(conditioning)
        key = (
            noise.shape,
            tuple(lengths),
            conditioning.pooled is None,
            torch.is_autocast_enabled(noise.device.type),
            getattr(self.student.head, "band_height", None),
        )
        with torch.cuda.device_of(noise):
            if key not in self._captured:
                captured = self._capture(noise, conditioning, lengths)
                self._make_room(captured.size, noise.device)
                self._captured[key] = captured
            self._captured.move_to_end(key)
            return self._captured[key].replay(noise, conditioning)

    def _lengths(self, conditioning: Conditioning) -> list[int]:
        """Of the captions that one graph serves: padded, or the very ones where the core asks for these."""
        lengths = conditioning.lengths.tolist()
        return [padded_length(n) for n in lengths] if isinstance(self.student.core, ZImageCore) else lengths

    def _make_room(self, size: int, device: torch.device) -> None:
        limit = SHARE * _memory(device)
        while self._captured and sum(kept.size for kept in self._captured.values()) + size > limit:
            self._captured.popitem(last=False)

    def _capture(self, noise: Tensor, conditioning: Conditioning, lengths: Sequence[int]) -> _Captured:
        embeds, device = conditioning.embeds, noise.device
        given = Conditioning(embeds.clone(), conditioning.lengths, conditioning.pooled)
        if given.pooled is not None:
            given.pooled = given.pooled.clone()
        if isinstance(self.student.core, ZImageCore):
            padded = embeds.new_zeros(len(embeds), max(lengths), embeds.shape[2])
            padded[:, : embeds.shape[1]] = embeds[:, : max(lengths)]
            given = Conditioning(
                padded, torch.tensor(lengths), given.pooled, conditioning.lengths.to(device, copy=True)
            )
        noise = noise.clone()
        here, beside = torch.cuda.current_stream(), torch.cuda.Stream()
        beside.wait_stream(here)
        with torch.cuda.stream(beside):
            for _ in range(WARM_UPS - 1):
                self._step(noise, given)
            with _Given() as read:  # by now what is made once is there
                self._step(noise, given)
        here.wait_stream(beside)
        held, before = list(read.tensors.values()), _reserved(device)
        del read
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                picture = self._step(noise, given)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"this step cannot be captured ({reason}): leave out --cuda-graphs, and report it"
            ) from error
        size = max(_reserved(device) - before, picture.nbytes)
        captured = _Captured(graph, noise, given, picture, held, size)
        self._check(captured, *_others(noise, conditioning, lengths))
        return captured

    def _check(self, captured: _Captured, noise: Tensor, conditioning: Conditioning) -> None:
        """Raises: UserError where the graph does not draw these inputs, which its capture has not seen, as the student."""
        expected = self._step(noise, conditioning)
        drawn = captured.replay(noise, conditioning)
        gap = float((drawn - expected).norm() / expected.norm())
        if not gap <= TOLERANCE:
            raise UserError(
                f"a graph of this step draws another picture (relative difference {gap:.2g}, at most {TOLERANCE}): "
                "leave out --cuda-graphs, and report it"
            )

    def _step(self, noise: Tensor, conditioning: Conditioning) -> Tensor:
        t = torch.ones(len(noise), device=noise.device)
        # The autocast in force, without its cache: a copy that it drops would leave the graph an address of nothing.
        kind = noise.device.type
        with torch.autocast(
            kind,
            dtype=torch.get_autocast_dtype(kind),
            enabled=torch.is_autocast_enabled(kind),
            cache_enabled=False,
        ):
            return self.student(noise, t, conditioning, torch.zeros_like(t))


def _others(noise: Tensor, captions: Conditioning, lengths: Sequence[int]) -> tuple[Tensor, Conditioning]:
    """Other noise and captions for the same graph; captions shorter, where it serves them."""
    own = captions.lengths.tolist()
    short = [
        min(n, padded - MULTIPLE + 1) if padded > n else n for n, padded in zip(own, lengths, strict=True)
    ]
    embeds = captions.embeds[:, : max(short)].flip(-1)
    pooled = None if captions.pooled is None else captions.pooled.flip(-1)
    return noise.flip(-1), Conditioning(embeds, torch.tensor(short), pooled)


def _memory(device: torch.device) -> int:
    """Bytes of a GPU."""
    return torch.cuda.get_device_properties(device).total_memory


def _reserved(device: torch.device) -> int:
    """Bytes that torch's allocator holds of a GPU."""
    return torch.cuda.memory_reserved(device)
