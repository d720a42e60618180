"""Pictures: exact 8-bit round trip, grids, PNG files."""

from __future__ import annotations

import errno

import numpy as np
import pytest
import torch
from PIL import Image

from l2p import images


def test_every_byte_comes_back():
    pictures = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, 3)
    tensor = images.from_uint8(pictures)
    assert tensor.dtype == torch.float32 and tensor.shape == (1, 3, 16, 16)
    assert tensor.min() == -1 and tensor.max() == 1
    assert np.array_equal(images.to_uint8(tensor), pictures)
    torch.testing.assert_close(
        tensor.double(), torch.tensor(pictures).permute(0, 3, 1, 2).double() / 127.5 - 1, rtol=0, atol=1e-7
    )


def test_channels_and_pixels_keep_their_place():
    pictures = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), dtype=np.uint8)
    tensor = images.from_uint8(pictures)
    assert tensor[1, 2, 3, 4] == pytest.approx(pictures[1, 3, 4, 2] / 127.5 - 1, abs=1e-6)
    assert np.array_equal(images.to_uint8(tensor), pictures)


def test_out_of_range_is_clamped_and_halves_are_rounded():
    levels = torch.tensor([-9.0, -1.0, 0.0, 1.0, 9.0]).reshape(1, 1, 1, 5).expand(1, 3, 1, 5)
    assert images.to_uint8(levels)[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255]
    assert images.to_uint8(levels.bfloat16().requires_grad_()).dtype == np.uint8


def test_nan_is_no_colour():
    with pytest.raises(ValueError, match="NaN"):
        images.to_uint8(torch.full((1, 3, 2, 2), float("nan")))


def test_png_is_exact_and_atomic(tmp_path, monkeypatch):
    picture = np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    path = tmp_path / "new" / "a.png"
    images.save_png(picture, path)
    assert np.array_equal(np.array(Image.open(path)), picture)

    def full(self, partial, **_):
        partial.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError):
        images.save_png(picture[::-1], path)
    assert np.array_equal(np.array(Image.open(path)), picture)
    assert list(path.parent.iterdir()) == [path]


def test_grid_places_every_picture():
    pictures = np.stack([np.full((4, 6, 3), value, np.uint8) for value in range(5)])
    grid = images.make_grid(pictures, columns=3, pad=2)
    assert grid.shape == (10, 22, 3)
    assert [grid[0, x, 0] for x in (0, 8, 16)] == [0, 1, 2] and [grid[6, x, 0] for x in (0, 8)] == [3, 4]
    assert (grid[4:6] == 255).all() and (grid[6:, 16:] == 255).all()
    assert np.array_equal(images.make_grid([pictures[:2], pictures[2], pictures[3:]], 3), grid)
    assert images.make_grid(pictures[:2], columns=8).shape == (4, 14, 3)


def test_labelled_grid_has_a_row_a_label_and_the_pictures_untouched():
    rng = np.random.default_rng(0)
    rows = {"teacher\n20 steps": rng.integers(0, 256, (3, 64, 48, 3), dtype=np.uint8)}
    rows["student"] = rng.integers(0, 256, (2, 64, 48, 3), dtype=np.uint8)
    sheet = images.labelled_grid(rows, ["a red house by a lake under a very long sky", "", "c"])
    plain = images.labelled_grid(rows)
    assert sheet.dtype == np.uint8 and sheet.shape[1] == plain.shape[1] and sheet.shape[0] > plain.shape[0]
    for found in (sheet, plain):
        top, left = found.shape[0] - 2 * 66, found.shape[1] - 3 * 50
        for row, pictures in enumerate(rows.values()):
            for column, picture in enumerate(pictures):
                y, x = top + row * 66, left + column * 50
                assert np.array_equal(found[y : y + 64, x : x + 48], picture)
        assert (found[top:, :left] < 100).any()  # the labels are there


def test_levels_made_on_the_device_are_those_of_to_uint8():
    x = torch.randn(2, 3, 9, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    for dtype in (torch.float32, torch.bfloat16):
        levels, is_broken = images.uint8_levels(x.to(dtype))
        assert np.array_equal(levels.numpy(), images.to_uint8(x.to(dtype))) and not is_broken
    x[1, 2, 3, 4] = torch.nan
    assert images.uint8_levels(x)[1]
