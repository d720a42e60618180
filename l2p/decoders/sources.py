"""What a decoder is given: latents in a safetensors file, or a picture, which the teacher encodes first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from l2p.errors import UserError
from l2p.files import no_such
from l2p.images import Pictures, from_uint8, read_picture
from l2p.picture_folder import PictureFolder, natural_key

if TYPE_CHECKING:
    from l2p.teachers.protocol import LatentGeometry, Teacher

KEY = "latents"  # name of the tensor where a file holds several


@dataclass
class Source:
    """One thing to decode.

    Attributes:
        latents: z_sigma [1, c, h, w] as the teacher normalises them.
        sigma: their noise level.
        height, width: pixels of the picture that they stand for, before any enlargement; what is beyond is padding.
        prompt: the caption, where it is known.
    """

    latents: Tensor
    sigma: float
    height: int
    width: int
    prompt: str | None = None


def find_files(inputs: Sequence[str]) -> list[Path]:
    """The files that are named, and those of the folders that are, in natural order. Raises UserError for what is not there."""
    files: list[Path] = []
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            listed = PictureFolder.read(path)
            found = [*path.glob("*.safetensors"), *(picture.path for picture in listed.pictures)]
            if not found:
                rest = f" ({', '.join(listed.left_out)})" if listed.left_out else ""
                raise UserError(
                    f"{path} holds nothing to decode{rest}, expected pictures or .safetensors files of latents"
                )
            files += sorted(found, key=lambda file: natural_key(file.name))
        elif path.is_file():
            files.append(path)
        else:
            raise no_such(name)
    return files


def read_source(
    path: Path, geometry: LatentGeometry, teacher: Teacher | None, sigma: float | None, seed: int = 0
) -> Source:
    """A file's latents.

    Args:
        teacher: encodes pictures; None where none is at hand.
        sigma: noise level to take the latents to have; None: what the file says, else 0. A picture is encoded and
            noised to it.
        seed: of that noise.

    Raises:
        UserError: a broken file, latents of other channels, or numbers that are not finite.
    """
    if path.suffix.lower() == ".safetensors":
        return _read_latents(path, geometry, sigma)
    if teacher is None:
        raise UserError(
            f"{path} is a picture, which only the VAE's own teacher can encode: name it with --teacher"
        )
    return encode(read_picture(path), teacher, sigma or 0.0, seed)


@torch.no_grad()
def encode(picture: Pictures, teacher: Teacher, sigma: float = 0.0, seed: int = 0) -> Source:
    """Latents of a picture uint8 [H, W, 3]; its sides are continued to whole tokens, two at least, by its last pixels."""
    from l2p import flow

    height, width = picture.shape[:2]
    p = teacher.geometry.token_pixels
    x = F.pad(from_uint8(picture[None]), (0, _missing(width, p), 0, _missing(height, p)), mode="replicate")
    z = teacher.encode(x.to(teacher.device)).float()
    if sigma:
        z = flow.add_noise(z, flow.noise([seed], *z.shape[1:]).to(z), sigma)
    return Source(z, sigma, height, width)


def _read_latents(path: Path, geometry: LatentGeometry, sigma: float | None) -> Source:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            names, metadata = list(file.keys()), file.metadata() or {}
            name = KEY if KEY in names else names[0] if len(names) == 1 else None
            if name is None:
                raise UserError(f"{path} holds {len(names)} tensors, expected one, or one called {KEY}")
            z = file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is no safetensors file: {' '.join(str(error).split())}") from error
    z = _unpacked(z, geometry, path)
    if not torch.isfinite(z).all():
        raise UserError(f"{path} holds NaN or infinite latents: nothing can be decoded from them")
    told = metadata.get("sigma", "0")
    try:
        level = float(told) if sigma is None else sigma
    except ValueError:
        raise UserError(f"{path} says sigma={told!r}, expected a number from 0 to 1") from None
    rows, columns = z.shape[2:]
    k = geometry.packing
    padded = F.pad(z, (0, _missing(columns, k), 0, _missing(rows, k)), mode="replicate")
    side = geometry.compression
    return Source(padded, level, rows * side, columns * side, metadata.get("prompt"))


def _missing(side: int, token: int) -> int:
    """What a side lacks to whole tokens, and to two of them: a statistic over a single token is none."""
    return max(2 * token, -(-side // token) * token) - side


def _unpacked(z: Tensor, geometry: LatentGeometry, path: Path) -> Tensor:
    """[c, h, w], [1, c, h, w] or packed [h, w, d], [1, h, w, d] to [1, c, h, w]."""
    from l2p.patches import unpatchify

    shape = list(z.shape)
    z = z[None] if z.ndim == 3 else z
    wanted = f"[{geometry.channels}, h, w]"
    if geometry.packing > 1:
        wanted += f" or packed [h, w, {geometry.token_dim}]"
    if z.ndim != 4 or len(z) != 1 or not z.is_floating_point() or not z.numel():
        raise UserError(
            f"{path} holds {z.dtype} numbers of shape {shape}, expected floating ones of shape {wanted}"
        )
    if z.shape[1] == geometry.channels:
        return z.float()
    if geometry.packing > 1 and z.shape[3] == geometry.token_dim:
        return unpatchify(z.float(), geometry.packing)
    raise UserError(f"{path} holds latents of shape {shape}, expected {wanted}: they are of another VAE")
