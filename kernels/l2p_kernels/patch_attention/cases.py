"""Inputs and the comparison that tests and benchmarks share."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .api import patch_attention


def relative_rms(got: Tensor, wanted: Tensor) -> float:
    """`|got - wanted| / |wanted|` in fp64."""
    wanted = wanted.double()
    return ((got.double() - wanted).norm() / wanted.norm().clamp_min(1e-300)).item()


@dataclass(frozen=True)
class Case:
    """One call of the operator. `options` are keyword arguments that are no tensors."""

    batch: int = 1
    height: int = 16
    width: int = 16
    heads: int = 2
    head_dim: int = 32
    tile: int = 8
    halo: int = 4
    norm: bool = False
    rope: bool = False

    def tensors(
        self, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0
    ) -> dict[str, Tensor]:
        """Differentiable inputs by name, the same values for every dtype up to rounding."""
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(device, dtype).requires_grad_()

        grid = (self.batch, self.height, self.width, self.heads, self.head_dim)
        inputs = {name: draw(*grid) for name in "qkv"}
        if self.norm:
            inputs |= {"q_norm": draw(self.head_dim), "k_norm": draw(self.head_dim)}
        return inputs

    def angles(self, device: str = "cpu") -> tuple[Tensor, Tensor] | None:
        """RoPE tables (rows, columns) as a model would make them, or None."""
        if not self.rope:
            return None
        pairs = self.head_dim // 4
        frequencies = 100.0 ** (-torch.arange(pairs, device=device) / pairs)
        return tuple(torch.arange(n, device=device)[:, None] * frequencies for n in (self.height, self.width))

    def run(self, inputs: dict[str, Tensor], impl: str) -> Tensor:
        rope = self.angles(inputs["q"].device.type)
        return patch_attention(**inputs, tile=self.tile, halo=self.halo, rope=rope, impl=impl)


def output_and_gradients(
    case: Case, inputs: dict[str, Tensor], impl: str, seed: int = 1
) -> dict[str, Tensor]:
    """The output and the gradient of every input, by name, for a random gradient of the output."""
    out = case.run(inputs, impl)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed)).to(out)
    grads = torch.autograd.grad(out, list(inputs.values()), grad)
    return {"out": out.detach()} | dict(zip(inputs, grads, strict=True))


def errors_against_reference(
    case: Case, impl: str, dtype: torch.dtype, device: str = "cpu"
) -> dict[str, float]:
    """Relative RMS error of `impl`'s output and gradients against the fp64 reference on the same (rounded) inputs."""
    inputs = case.tensors(dtype, device)
    exact = {name: x.detach().double().requires_grad_() for name, x in inputs.items()}
    wanted = output_and_gradients(case, exact, "reference")
    got = output_and_gradients(case, inputs, impl)
    return {name: relative_rms(got[name], wanted[name]) for name in wanted}
