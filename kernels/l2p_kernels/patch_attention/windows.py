"""Which queries share which keys: the grid cut into groups of equal windows, without padding or masks.

Along one axis, tile `i` holds queries `[i*tile, (i+1)*tile)` and sees keys `[i*tile - halo, (i+1)*tile + halo)`,
both clipped to the grid. Consecutive tiles with windows of the same length at a regular step form a `Run`; runs of
rows times runs of columns are the groups. A grid far larger than a tile has 3 runs an axis (first, middle, last).
Tiles that see the same keys (a halo that covers the grid) become one larger tile.
"""

from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor


@dataclass(frozen=True)
class Run:
    """`count` tiles of `size` queries from `start`, `step` apart, each seeing `reach` keys from `key_start`."""

    start: int
    size: int
    count: int
    key_start: int
    reach: int
    step: int

    @property
    def stop(self) -> int:
        return self.start + self.size * self.count

    @property
    def key_stop(self) -> int:
        return self.key_start + self.step * (self.count - 1) + self.reach

    def slice(self, first: int, last: int) -> "Run":
        """The run's tiles `[first, last)`."""
        start, keys = self.start + first * self.size, self.key_start + first * self.step
        return Run(start, self.size, last - first, keys, self.reach, self.step)

    def shift(self, key_offset: int) -> "Run":
        """The same run with its keys counted from `key_offset`."""
        return Run(self.start, self.size, self.count, self.key_start - key_offset, self.reach, self.step)


@lru_cache(maxsize=256)
def runs(n: int, tile: int, halo: int) -> tuple[Run, ...]:
    """The runs that cover one axis of length `n`, in order."""
    tiles: list[list[int]] = []  # [start, stop, key_start, key_stop]
    for start in range(0, n, tile):
        window = [max(0, start - halo), min(n, start + tile + halo)]
        if tiles and tiles[-1][2:] == window:
            tiles[-1][1] = min(n, start + tile)
        else:
            tiles.append([start, min(n, start + tile), *window])

    found: list[Run] = []
    for start, stop, key_start, key_stop in tiles:
        size, reach = stop - start, key_stop - key_start
        last = found[-1] if found else None
        if last and (last.size, last.reach) == (size, reach) and key_start == last.key_stop - reach + size:
            found[-1] = Run(last.start, size, last.count + 1, last.key_start, reach, size)
        else:
            found.append(Run(start, size, 1, key_start, reach, size))
    return tuple(found)


def tiles_of(x: Tensor, row: Run, column: Run) -> Tensor:
    """View of `x [B, H, W, h, d]` as its query tiles `[B, ny, nx, ty, tx, h, d]`."""
    x = x[:, row.start : row.stop, column.start : column.stop]
    x = x.unflatten(1, (row.count, row.size)).unflatten(3, (column.count, column.size))
    return x.transpose(2, 3)


def windows_of(x: Tensor, row: Run, column: Run) -> Tensor:
    """View of `x [B, H, W, h, d]` as its overlapping key windows `[B, ny, nx, wy, wx, h, d]`."""
    x = x[:, row.key_start : row.key_stop, column.key_start : column.key_stop]
    x = x.unfold(1, row.reach, row.step).unfold(2, column.reach, column.step)  # [B, ny, nx, h, d, wy, wx]
    return x.permute(0, 1, 2, 5, 6, 3, 4)


def add_windows_(total: Tensor, windows: Tensor, row: Run, column: Run) -> None:
    """Adds `windows [B, ny, nx, wy, wx, h, d]` into `total [B, H, W, h, d]` where `windows_of` took them from.

    Windows overlap, so they are added slab by slab: tiles' slabs of one step never overlap each other.
    """
    for y in range(0, row.reach, row.step):
        for x in range(0, column.reach, column.step):
            part = windows[:, :, :, y : y + row.step, x : x + column.step]
            rows, columns = part.shape[3:5]
            slab_row = Run(0, 0, row.count, row.key_start + y, rows, row.step)
            slab_column = Run(0, 0, column.count, column.key_start + x, columns, column.step)
            windows_of(total, slab_row, slab_column).add_(part)
