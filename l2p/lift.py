"""Latents and pixels tied by one orthonormal map: a latent flow model is already a low-rank pixel flow model.

Notable:
- ``x ~ s A z + b`` for a pixel patch ``x`` [D] and the latent ``z`` [d] of the same token; ``A^T A = I``.
- White pixel noise maps to white latent noise (``A^T eps``), so pairs across the two spaces are exact.
- Along the pixel path ``x_t = (1 - t) x_0 + t eps`` the projection is the latent path at its own time::

      A^T (x_t - (1 - t) b) = k [(1 - t') z_0 + t' eps_z],   k = (1 - t) s + t,   t' = t / k

  ``t`` is ``t'`` shifted by ``s`` (``t = s t' / (1 + (s - 1) t')``).
- From the teacher's latent velocity ``u_z`` at ``(z, t')`` the pixel model it already is predicts
  ``x_0 = s A (z - t' u_z) + b``. Its velocity ``(x_t - x_0) / t`` is, inside the span of ``A``,
  ``(1 - s) z + (s / k) u_z - A^T b`` and, outside, ``(I - A A^T)(x_t - b) / t``. The change of time is
  projective, so one Euler step in pixels is exactly one Euler step in latents, at any step size.

After Asymmetric Flow Models (arXiv 2605.12964, section 5 and appendix A), with an offset added.

Legend: N tokens, D = 3 p^2 values of a pixel patch, d values of a packed latent, P = A A^T.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from l2p.artifacts import hash_tensors, sealed, unsealed
from l2p.errors import UserError
from l2p.files import atomic_path
from l2p.flow import shift_time, time_like

CHUNK = 65_536  # tokens turned to fp64 at a time: a million of them would not fit in memory at once


@dataclass(frozen=True)
class Lift:
    """The fitted map ``x ~ scale * basis z + offset`` and how much of the pixels it explains.

    Attributes:
        basis: A [D, d], orthonormal columns, float64.
        scale: s > 0.
        offset: b [D], float64.
        r2: share of the pixel variance explained by this map; not above ``r2_lstsq``.
        r2_lstsq: the same for the best affine map of latents to pixels.
        r2_pca: the same for the best d-dimensional subspace of pixels, whatever the latents: the ceiling.
        readout: an affine map of latents to pixels as a convolution, weight [D, d, 3, 3] and bias [D], from which a
            head may start (:func:`fit_readout`). ``s A`` and b where none was fitted.
        fitted: what whoever fitted it notes of how; JSON values.
    """

    basis: Tensor
    scale: float
    offset: Tensor
    r2: float
    r2_lstsq: float
    r2_pca: float
    readout: tuple[Tensor, Tensor] | None = None
    fitted: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.readout is None:
            weight = torch.nn.functional.pad((self.scale * self.basis)[..., None, None], (1, 1, 1, 1))
            object.__setattr__(self, "readout", (weight, self.offset))

    @property
    def sha256(self) -> str:
        """Hash of the map's numbers in float32. A lift fitted anew may differ in its last bits: load the one that was kept."""
        found = hashlib.sha256()
        for value in (self.basis, self.scale, self.offset):
            numbers = torch.as_tensor(value).detach().to("cpu", torch.float32)
            found.update(numbers.contiguous().numpy().tobytes())
        return found.hexdigest()

    @property
    def patch_size(self) -> int:
        """p, pixels a side of a token."""
        return math.isqrt(len(self.basis) // 3)

    def to(self, device: torch.device | str) -> Lift:
        moved = {"basis": self.basis.to(device), "offset": self.offset.to(device)}
        return Lift(**{**vars(self), **moved, "readout": tuple(part.to(device) for part in self.readout)})

    def k(self, t: Tensor | float) -> Tensor | float:
        """Factor between projected pixels and latents at pixel time ``t``: ``scale`` at 0, 1 at 1."""
        return (1 - t) * self.scale + t

    def latent_time(self, t: Tensor | float) -> Tensor | float:
        """Latent time ``t'`` of pixel time ``t``, both in [0, 1]."""
        return t / self.k(t)

    def pixel_time(self, t_latent: Tensor | float) -> Tensor | float:
        """Pixel time of a latent time: the inverse of :meth:`latent_time`."""
        return shift_time(t_latent, self.scale)

    def to_latent(self, x_t: Tensor, t: Tensor | float) -> Tensor:
        """Noisy latents [B, ..., d] at ``latent_time(t)`` of noisy tokens [B, ..., D] at ``t`` ([B] or a
        number).

        At ``t = 0`` this is the latent of a picture as far as the lift knows it.
        """
        t = time_like(t, x_t)
        centred = x_t - (1 - t) * self.offset.to(x_t)
        return centred @ self.basis.to(centred) / self.k(t)

    def to_pixels(self, z: Tensor) -> Tensor:
        """Pixel tokens [..., D] of clean latent tokens [..., d]."""
        return self.scale * z @ self.basis.to(z).T + self.offset.to(z)

    def noise_to_latent(self, eps: Tensor) -> Tensor:
        """Latent noise tokens [..., d] of pixel noise tokens [..., D]; white in, white out."""
        return eps @ self.basis.to(eps)

    def x_0(self, x_t: Tensor, u_z: Tensor, t: Tensor) -> Tensor:
        """Clean pixel tokens predicted by the latent velocity ``u_z`` at ``to_latent(x_t, t)``."""
        return self.to_pixels(self.to_latent(x_t, t) - time_like(self.latent_time(t), u_z) * u_z)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, whole or not at all."""
        from safetensors.torch import save_file

        numbers = {name: getattr(self, name) for name in ("scale", "r2", "r2_lstsq", "r2_pca")}
        numbers |= {} if self.fitted is None else {"fitted": self.fitted}
        tensors = {"basis": self.basis, "offset": self.offset}
        tensors |= {"readout.weight": self.readout[0], "readout.bias": self.readout[1]}
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        numbers["tensors"] = hash_tensors(tensors)
        with atomic_path(path) as partial:
            save_file(tensors, partial, metadata={"l2p_lift": json.dumps(sealed(numbers))})

    @classmethod
    def load(cls, path: str | Path) -> Lift:
        """Raises: UserError if the file is missing, damaged, or no lift."""
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():
            raise UserError(f"no lift at {path}: run the lift stage first")
        try:
            with safe_open(path, framework="pt") as file:
                numbers = unsealed(json.loads((file.metadata() or {})["l2p_lift"]))
                tensors = {name: file.get_tensor(name) for name in file.keys()}
            if numbers.pop("tensors", None) not in (None, hash_tensors(tensors)):
                raise ValueError("another checksum than its own")
            readout = tensors["readout.weight"], tensors["readout.bias"]
            return cls(basis=tensors["basis"], offset=tensors["offset"], readout=readout, **numbers)
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path} is damaged or is no lift ({error}): delete this file and run again"
            ) from error


def _moments(pixels: Tensor, latents: Tensor) -> tuple[Tensor, ...]:
    """Means, then centred second moments ``X^T X`` [D, D], ``X^T Z`` [D, d], ``Z^T Z`` [d, d], all fp64."""
    chunks = [slice(i, i + CHUNK) for i in range(0, len(pixels), CHUNK)]
    mean_x = sum(pixels[c].double().sum(0) for c in chunks) / len(pixels)
    mean_z = sum(latents[c].double().sum(0) for c in chunks) / len(latents)
    xx, xz, zz = 0.0, 0.0, 0.0
    for c in chunks:
        x, z = pixels[c].double() - mean_x, latents[c].double() - mean_z
        xx, xz, zz = xx + x.T @ x, xz + x.T @ z, zz + z.T @ z
    return mean_x, mean_z, xx, xz, zz


def fit_lift(pixels: Tensor, latents: Tensor, scale: Literal["procrustes", "energy"] = "procrustes") -> Lift:
    """Fit the lift on matching tokens.

    Args:
        pixels: [N, D] pixel patches of clean pictures in [-1, 1].
        latents: [N, d] packed latents of the same tokens, d <= D.
        scale: "procrustes" (least squares, ``tr(Sigma) / |Z|^2``) or "energy" (matches variances inside the
            span, ``|X A| / |Z|``; larger, as it does not shrink what the latents fail to explain).

    Raises:
        ValueError: shapes that do not match, too few tokens, values that are not finite, or constant data.
    """
    if (
        pixels.ndim != 2
        or latents.ndim != 2
        or len(pixels) != len(latents)
        or latents.shape[1] > pixels.shape[1]
    ):
        raise ValueError(
            f"expected [N, D] and [N, d <= D], got {list(pixels.shape)} and {list(latents.shape)}"
        )
    if len(pixels) <= latents.shape[1]:
        raise ValueError(
            f"{len(pixels)} tokens cannot fix a map of {latents.shape[1]} latent values: use more pictures"
        )
    if scale not in ("procrustes", "energy"):
        raise ValueError(f"{scale=} must be 'procrustes' or 'energy'")
    mean_x, mean_z, xx, xz, zz = _moments(pixels, latents)
    energy_x, energy_z = xx.trace(), zz.trace()
    if not (torch.isfinite(energy_x) and torch.isfinite(energy_z)):
        raise ValueError("pixels or latents hold NaN or infinity")
    if energy_x <= 0 or energy_z <= 0:
        raise ValueError("pixels or latents are constant: there is nothing to fit")

    left, sigma, right = torch.linalg.svd(xz, full_matrices=False)
    basis = left @ right
    inside = torch.einsum("ij,ik,kj->", basis, xx, basis)  # |X A|^2
    s = sigma.sum() / energy_z if scale == "procrustes" else (inside / energy_z).sqrt()
    residual = energy_x - 2 * s * sigma.sum() + s**2 * energy_z
    explained = (xz @ torch.linalg.pinv(zz, hermitian=True) @ xz.T).trace()
    top = torch.linalg.eigvalsh(xx)[-latents.shape[1] :].sum()
    return Lift(
        basis=basis,
        scale=s.item(),
        offset=mean_x - s * (basis @ mean_z),
        r2=(1 - residual / energy_x).item(),
        r2_lstsq=(explained / energy_x).item(),
        r2_pca=(top / energy_x).item(),
    )


def neighbourhoods(latents: Tensor) -> Tensor:
    """3 x 3 neighbourhoods [B, h, w, 9 d] (channel, row, column) of latent tokens [B, h, w, d]; zero beyond the edge."""
    height, width = latents.shape[1:3]
    columns = torch.nn.functional.unfold(latents.permute(0, 3, 1, 2), 3, padding=1)
    return columns.unflatten(2, (height, width)).permute(0, 2, 3, 1)


def fit_readout(pixels: Tensor, around: Tensor) -> tuple[tuple[Tensor, Tensor], float]:
    """The best affine map from latents to pixels that also sees the neighbouring tokens.

    A decoder's patch depends on the latents around it, so a map that reads its own token alone leaves seams.

    Args:
        pixels: [N, D] pixel patches.
        around: [N, 9 d] of the same tokens, from :func:`neighbourhoods`.

    Returns:
        the convolution's weight [D, d, 3, 3] and bias [D], fp64, and the share of the pixel variance it explains.
    """
    mean_x, mean_z, xx, xz, zz = _moments(pixels, around)
    ridge = 1e-6 * zz.trace() / len(zz) * torch.eye(len(zz), dtype=zz.dtype, device=zz.device)
    weight = torch.linalg.solve(zz + ridge, xz.T).T
    explained = 2 * (weight * xz).sum() - torch.einsum("ij,jk,ik->", weight, zz, weight)
    bias = mean_x - weight @ mean_z
    return (weight.unflatten(1, (-1, 3, 3)), bias), float(explained / xx.trace())


def asymmetric_velocity(x_t: Tensor, x_0: Tensor, t: Tensor, basis: Tensor, t_min: float = 0.05) -> Tensor:
    """``u_A = P eps - x_0`` of tokens [B, ..., D] for a predicted ``x_0`` at ``t`` [B]; t_min as in flow."""
    t = time_like(t, x_t)
    eps = (x_t - (1 - t) * x_0) / t.clamp(min=t_min)
    return _project(eps, basis) - x_0


def velocity_from_asymmetric(
    x_t: Tensor, u_a: Tensor, t: Tensor, basis: Tensor, t_min: float = 0.05
) -> Tensor:
    """``u = P u_A + (I - P)(x_t + u_A) / t`` of tokens [B, ..., D]; ``t_min`` guards the division."""
    outside = x_t + u_a
    outside = (outside - _project(outside, basis)) / time_like(t, x_t).clamp(min=t_min)
    return _project(u_a, basis) + outside


def x_0_from_asymmetric(x_t: Tensor, u_a: Tensor, t: Tensor, basis: Tensor) -> Tensor:
    """``x_0 = P (x_t - t u_A) - (I - P) u_A``: no division, so exact at every ``t`` in [0, 1]."""
    return _project(x_t + (1 - time_like(t, x_t)) * u_a, basis) - u_a


def _project(tokens: Tensor, basis: Tensor) -> Tensor:
    basis = basis.to(tokens)
    return (tokens @ basis) @ basis.T
