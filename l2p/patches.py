"""Pictures as grids of tokens and back. B batch, C channels, H W pixels, h w tokens, p patch side in pixels."""

from __future__ import annotations

from torch import Tensor


def patchify(x: Tensor, p: int) -> Tensor:
    """[B, C, H, W] -> [B, H / p, W / p, p p C]; within a token: row, column, channel (fastest), as diffusers' Z-Image.

    Raises ValueError when p does not divide H and W.
    """
    batch, channels, height, width = x.shape
    if height % p or width % p:
        raise ValueError(f"a picture of {height} x {width} has no whole patches of {p}")
    x = x.reshape(batch, channels, height // p, p, width // p, p).permute(0, 2, 4, 3, 5, 1)
    return x.reshape(batch, height // p, width // p, p * p * channels)


def unpatchify(tokens: Tensor, p: int) -> Tensor:
    """[B, h, w, p p C] -> [B, C, h p, w p]: the inverse of `patchify`.

    Raises ValueError when the tokens are no patches of side p.
    """
    return pixels(tokens, p).permute(0, 3, 1, 2).contiguous()


def pixels(tokens: Tensor, p: int) -> Tensor:
    """`unpatchify` with the channels last, [B, h p, w p, C]: tokens lie in memory so, and little is moved."""
    batch, rows, columns, size = tokens.shape
    if size % (p * p):
        raise ValueError(f"tokens of {size} values are no patches of {p} x {p} pixels")
    x = tokens.reshape(batch, rows, columns, p, p, size // (p * p)).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, rows * p, columns * p, size // (p * p))
