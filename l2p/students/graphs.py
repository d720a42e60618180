"""CUDA graphs: a student's one step at one size, captured once and replayed in a single launch.

A small student on a fast GPU waits for its host, which launches some thousand kernels a picture; a graph launches them in
one call. It holds addresses and shapes: noise and captions are copied to where they lay during the capture, and other
sizes, or captions of other lengths, are captured anew. Every new graph has to draw what the student draws without one,
or it is refused. (https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs)
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from l2p.errors import UserError
from l2p.students.student import PixelStudent
from l2p.teachers.protocol import Conditioning

WARM_UPS = 3  # steps before a capture: kernels are chosen and tables filled, which a capture must not see
TOLERANCE = 0.03  # relative RMS of a replayed picture: bf16 in another order differs by a hundredth, another picture by one
GRAPHS = 4  # kept at a time, the latest ones: each holds the memory of a whole step


def check_cuda_graphs(device: torch.device) -> None:
    """Raises: UserError on a device that has none."""
    if device.type != "cuda":
        raise UserError(
            f"CUDA graphs are for CUDA devices, this one is {device}: leave out --cuda-graphs, or give --device cuda"
        )


@dataclass
class _Captured:
    graph: Any
    noise: Tensor
    conditioning: Conditioning
    picture: Tensor

    def replay(self, noise: Tensor, conditioning: Conditioning) -> Tensor:
        self.noise.copy_(noise)
        self.conditioning.embeds.copy_(conditioning.embeds)
        if self.conditioning.pooled is not None:
            self.conditioning.pooled.copy_(conditioning.pooled)
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
        key = (
            noise.shape,
            conditioning.embeds.shape,
            tuple(conditioning.lengths.tolist()),
            torch.is_autocast_enabled(noise.device.type),
            getattr(self.student.head, "band_height", None),
        )
        if key not in self._captured:
            self._captured[key] = self._capture(noise, conditioning)
            while len(self._captured) > GRAPHS:
                self._captured.popitem(last=False)
        self._captured.move_to_end(key)
        return self._captured[key].replay(noise, conditioning)

    def _capture(self, noise: Tensor, conditioning: Conditioning) -> _Captured:
        pooled = None if conditioning.pooled is None else conditioning.pooled.clone()
        given = Conditioning(conditioning.embeds.clone(), conditioning.lengths, pooled)
        noise = noise.clone()
        here, beside = torch.cuda.current_stream(), torch.cuda.Stream()
        beside.wait_stream(here)
        with torch.cuda.stream(beside):
            for _ in range(WARM_UPS):
                expected = self._step(noise, given)
        here.wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                picture = self._step(noise, given)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"this step cannot be captured ({reason}): leave out --cuda-graphs, and report it"
            ) from error
        captured = _Captured(graph, noise, given, picture)
        drawn = captured.replay(noise, given)
        gap = float((drawn - expected).norm() / expected.norm())
        if not gap <= TOLERANCE:
            raise UserError(
                f"a graph of this step draws another picture (relative difference {gap:.2g}, at most {TOLERANCE}): "
                "leave out --cuda-graphs, and report it"
            )
        return captured

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
