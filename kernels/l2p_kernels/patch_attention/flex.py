"""Patch attention through FlexAttention: a baseline to compare with. No gradient on a CPU; head_dim a power of two.

Queries are laid out tile by tile, keys too, in tiles moved by the halo, as in the Triton kernels: a block of the mask is a
tile, its blocks are counted rather than found, and where the halo is half a tile all blocks inside the grid are whole.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from . import prologue


def origin(tile: int, halo: int) -> int:
    """Where the first tile of keys begins, along an axis: at most 0, and the halo modulo the tile."""
    return -(-halo % tile)


def _axis(n: int, tile: int, halo: int) -> tuple[int, list[range]]:
    """How many tiles of keys there are, and which of them each tile of queries sees."""
    start, seen = origin(tile, halo), []
    for i in range(-(-n // tile)):
        first, last = max(0, i * tile - halo), min(n, (i + 1) * tile + halo)
        seen.append(range((first - start) // tile, -(-(last - start) // tile)))
    return -(-(n - start) // tile), seen


def _lists(blocks: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Lengths `[1, 1, rows]` and numbers `[1, 1, rows, longest]`, zeros after the end."""
    longest = max(1, max(map(len, blocks)))
    counts = torch.tensor([len(row) for row in blocks], dtype=torch.int32, device=device)
    numbers = torch.tensor(
        [row + [0] * (longest - len(row)) for row in blocks], dtype=torch.int32, device=device
    )
    return counts[None, None], numbers[None, None]


@functools.lru_cache(maxsize=16)
def block_mask(height: int, width: int, tile: int, halo: int, device: torch.device) -> BlockMask:
    """The mask over tiles: lists of the tiles in reach, whose memory grows with their number."""
    start, size = origin(tile, halo), tile * tile
    (keys_y, rows), (keys_x, columns) = (_axis(n, tile, halo) for n in (height, width))

    def whole(i: int, key: int, n: int) -> bool:
        """Is all of a tile of keys inside the grid and in reach of tile i?"""
        low = start + key * tile
        return low >= max(0, i * tile - halo) and low + tile <= min(n, (i + 1) * tile + halo)

    keys_of: dict[bool, list[list[int]]] = {
        kind: [[] for _ in range(len(rows) * len(columns))] for kind in (False, True)
    }
    queries_of = {kind: [[] for _ in range(keys_y * keys_x)] for kind in (False, True)}
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            query = i * len(columns) + j
            for y in row:
                for x in column:
                    kind = whole(i, y, height) and whole(j, x, width)
                    keys_of[kind][query].append(y * keys_x + x)
                    queries_of[kind][y * keys_x + x].append(query)
    tensors = [x for of in (keys_of, queries_of) for kind in (False, True) for x in _lists(of[kind], device)]
    tiles_x = len(columns)

    def seen(b, h, query, key):
        y, x = key // size // keys_x * tile + key % size // tile, key // size % keys_x * tile + key % tile
        y, x = y + start, x + start
        top, left = query // size // tiles_x * tile - halo, query // size % tiles_x * tile - halo
        near = (y >= top) & (y < top + tile + 2 * halo) & (x >= left) & (x < left + tile + 2 * halo)
        return near & (y >= 0) & (y < height) & (x >= 0) & (x < width)

    # Not `from_kv_blocks`: it finds the lists of queries through a dense matrix, and wants lists as long as that is wide.
    return BlockMask((len(rows) * tiles_x * size, keys_y * keys_x * size), *tensors, (size, size), seen)


def tile_major(x: Tensor, tile: int, start: int) -> Tensor:
    """`[B, H, W, h, d]` -> `[B, h, tiles * tile * tile, d]`, the first tile beginning at `start <= 0`, zeros outside."""
    _, height, width, _, _ = x.shape
    bottom, right = -(height - start) % tile, -(width - start) % tile
    x = F.pad(x, (0, 0, 0, 0, -start, right, -start, bottom))
    x = x.unflatten(1, (-1, tile)).unflatten(3, (-1, tile))
    return x.permute(0, 5, 1, 3, 2, 4, 6).flatten(2, 5)


@functools.cache
def _compiled():
    return torch.compile(flex_attention)


def patch_attention_flex(q, k, v, q_norm, k_norm, rows, columns, tile, halo, scale) -> Tensor:
    """`[B, H, W, heads, head_dim]` -> the same; compiled on a GPU, eager on a CPU."""
    _, height, width, _, _ = q.shape
    table = None if rows is None else prologue.rope_table(rows, columns, prologue.compute_dtype(q.dtype))
    q, k = prologue.forward(q, q_norm, table), prologue.forward(k, k_norm, table)
    start = origin(tile, halo)
    operands = (tile_major(q, tile, 0), tile_major(k, tile, start), tile_major(v, tile, start))
    run = _compiled() if q.device.type == "cuda" else flex_attention
    out = run(*operands, block_mask=block_mask(height, width, tile, halo, q.device), scale=scale)
    tiles = (-(-height // tile), -(-width // tile))
    grid = out.unflatten(2, (*tiles, tile, tile)).permute(0, 2, 4, 3, 5, 1, 6).flatten(3, 4).flatten(1, 2)
    return grid[:, :height, :width].contiguous()
