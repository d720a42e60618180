"""Pictures outside the network: 8-bit arrays, PNG files, grids. N pictures, H W pixels; arrays are [N, H, W, 3]."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from l2p.errors import UserError
from l2p.files import PathLike, atomic_path

Pictures = NDArray[np.uint8]
LARGE = 128 * 2**20  # bytes of a picture that is not copied as a whole any more
PAPER, INK = 255, 40  # grey levels of a grid's background and text


def to_uint8(images: Tensor) -> Pictures:
    """[N, 3, H, W] in [-1, 1] (clamped) -> uint8 [N, H, W, 3]. NaN raises ValueError: it has no colour."""
    levels = images.detach().float().clamp(-1, 1).add_(1).mul_(127.5)
    if levels.sum().isnan():
        raise ValueError("a picture holds NaN")
    return levels.round_().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def from_uint8(pictures: Pictures) -> Tensor:
    """uint8 [N, H, W, 3] -> float32 [N, 3, H, W] in [-1, 1]; `to_uint8` gives back the very same bytes."""
    return torch.tensor(pictures).permute(0, 3, 1, 2).contiguous().float().div_(127.5).sub_(1)


def read_picture(path: PathLike | BinaryIO, name: str | None = None) -> Pictures:
    """The picture in a file, or in an open one that is called `name`, uint8 [H, W, 3]: the first of several, turned as
    its EXIF says, on white where it is transparent, 16 bits a channel rounded to 8.

    Raises UserError if it is none.
    """
    from PIL import Image, ImageOps

    told = name or path
    try:
        with Image.open(path) as image:
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I") or image.mode == "F":
                return _from_deep_grey(np.asarray(image), told)
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
            return np.asarray(image.convert("RGB"))
    except Image.DecompressionBombError as error:
        raise UserError(f"{told} is too large: {error}") from error
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        if isinstance(error, UserError):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{told} is no picture or is cut short: {reason}") from error


def _from_deep_grey(levels: NDArray, path: PathLike) -> Pictures:
    """Grey levels of 16 bits, or floating ones in [0, 1], as three equal channels."""
    levels = levels.astype(np.float64)
    if not np.isfinite(levels).all():
        raise UserError(f"{path} holds NaN or infinite grey levels")
    top = 65535 if levels.max(initial=0) > 1 else 1
    grey = np.rint(levels.clip(0, top) * (255 / top)).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def save_png(picture: Pictures, path: PathLike) -> None:
    """Writes uint8 [H, W, 3] as PNG, whole or not at all."""
    from PIL import Image

    with atomic_path(path) as partial:
        if picture.nbytes > LARGE:  # Pillow would first copy it, at four bytes a pixel
            _write_png(picture, partial)
        else:
            Image.fromarray(picture).save(partial, format="PNG")


def _write_png(picture: Pictures, path: PathLike) -> None:
    """PNG (ISO/IEC 15948) some rows at a time, each number stored as its difference to the pixel on its left."""
    height, width, _ = picture.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    compressor = zlib.compressobj(4)
    with open(path, "wb") as file:
        file.write(
            b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        )
        step = max(1, 2**22 // (3 * width))
        for start in range(0, height, step):
            rows = picture[start : start + step]
            lines = np.ones(
                (len(rows), 1 + 3 * width), np.uint8
            )  # a line begins with its filter: 1, the left pixel
            lines[:, 1:] = rows.reshape(len(rows), -1)
            lines[:, 4:] -= rows.reshape(len(rows), -1)[:, :-3]
            file.write(chunk(b"IDAT", compressor.compress(lines.tobytes())))
        file.write(chunk(b"IDAT", compressor.flush()) + chunk(b"IEND", b""))


def make_grid(pictures: Pictures | Sequence[Pictures], columns: int, pad: int = 2) -> Pictures:
    """Pictures of one size, row by row with `pad` pixels between -> one uint8 [H', W', 3].

    pictures: one array [N, H, W, 3], or a sequence whose parts are [H, W, 3] or [N, H, W, 3].
    """
    if not isinstance(pictures, np.ndarray):
        pictures = np.concatenate([part.reshape(-1, *part.shape[-3:]) for part in pictures])
    count, height, width, _ = pictures.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    grid = np.full((rows * (height + pad) - pad, columns * (width + pad) - pad, 3), PAPER, np.uint8)
    for index, picture in enumerate(pictures):
        y, x = index // columns * (height + pad), index % columns * (width + pad)
        grid[y : y + height, x : x + width] = picture
    return grid


def labelled_grid(rows: dict[str, Pictures], captions: Sequence[str] | None = None) -> Pictures:
    """One row of pictures a label, the label on its left, captions above the columns -> uint8 [H', W', 3].

    rows: label -> uint8 [N, H, W, 3], all of one H and W; captions: one a column, wrapped, cut after four lines.
    """
    from PIL import Image, ImageDraw, ImageFont

    height, width = next(iter(rows.values())).shape[1:3]
    columns = max(len(pictures) for pictures in rows.values())
    font = ImageFont.load_default(size=max(10, min(28, height // 12)))
    line = sum(font.getmetrics()) + 2
    left = 8 + int(max(font.getlength(text) for label in rows for text in label.split("\n")))
    lines = [_wrap(caption, font, width)[:4] for caption in captions or []]
    top = 4 + line * max((len(wrapped) for wrapped in lines), default=0)

    sheet = np.full((top + len(rows) * (height + 2), left + columns * (width + 2), 3), PAPER, np.uint8)
    for row, pictures in enumerate(rows.values()):
        for column, picture in enumerate(pictures):
            y, x = top + row * (height + 2), left + column * (width + 2)
            sheet[y : y + height, x : x + width] = picture
    image = Image.fromarray(sheet)
    draw = ImageDraw.Draw(image)
    for row, label in enumerate(rows):
        middle = top + row * (height + 2) + (height - line * (label.count("\n") + 1)) // 2
        draw.multiline_text((4, middle), label, fill=(INK,) * 3, font=font, spacing=2)
    for column, wrapped in enumerate(lines):
        draw.multiline_text(
            (left + column * (width + 2), 2), "\n".join(wrapped), fill=(INK,) * 3, font=font, spacing=2
        )
    return np.array(image)


def _wrap(text: str, font, width: int) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width - 4:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines
