"""Pictures outside the network: 8-bit arrays, PNG files, grids. N pictures, H W pixels; arrays are [N, H, W, 3]."""

from __future__ import annotations

import io
import json
import os
import struct
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from l2p.colour import png_chunk, stated_space
from l2p.errors import UserError, warn
from l2p.files import PICTURES, PathLike, atomic_path

if TYPE_CHECKING:
    from PIL import Image

Pictures = NDArray[np.uint8]
MAX_PIXELS = 2**28
LARGE = 128 * 2**20  # bytes of a picture that is not copied as a whole any more
PLUGINS = {
    ".heic": "pip install pillow-heif",
    ".heif": "pip install pillow-heif",
    ".jxl": "pip install pillow-jxl-plugin",
}
# Pillow's names of the formats that are read. Others, such as EPS, start programs or read further files.
FORMATS = (
    *("PNG", "JPEG", "MPO", "WEBP", "GIF", "TIFF", "BMP", "DIB", "AVIF", "HEIF", "JPEG2000", "JXL"),
    *("PPM", "TGA", "QOI", "PSD"),
)
PIECE = 2**22  # pixels that are converted at once
BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0  # tags of TIFF 6.0
FLOAT_SLACK = 1e-3  # beyond 0 and 1 that is taken for rounding
SPACE = "l2p_space"  # of a picture's info: the :class:`~l2p.colour.ColourSpace` that its file states
PNG_KEY = "l2p"  # of the text in a PNG that says what it was made from
PAPER, INK = 255, 40  # grey levels of a grid's background and text


def to_uint8(images: Tensor) -> Pictures:
    """[N, 3, H, W] in [-1, 1] (clamped) -> uint8 [N, H, W, 3]. NaN raises ValueError: it has no colour."""
    levels = images.detach().float().clamp(-1, 1).add_(1).mul_(127.5)
    if levels.sum().isnan():
        raise ValueError("a picture holds NaN")
    return levels.round_().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def uint8_levels(images: Tensor) -> tuple[Tensor, Tensor]:
    """`to_uint8` on the images' device: uint8 [N, H, W, 3], and whether any pixel is NaN (bool []), which nobody waits for."""
    levels = images.detach().float().permute(0, 2, 3, 1).add(1).clamp_(0, 2).mul_(127.5).round_()
    return levels.to(torch.uint8), levels.isnan().any()


def from_uint8(pictures: Pictures) -> Tensor:
    """uint8 [N, H, W, 3] -> float32 [N, 3, H, W] in [-1, 1]; `to_uint8` gives back the very same bytes."""
    return torch.tensor(pictures).permute(0, 3, 1, 2).contiguous().float().div_(127.5).sub_(1)


def max_pixels() -> int:
    """Pixels of the largest picture that is read: L2P_MAX_PIXELS in the environment, or 2**28 (16384 x 16384).

    A file of some kilobytes may declare any size. Raises UserError where the variable is no such number.
    """
    text = os.environ.get("L2P_MAX_PIXELS", "").strip()
    if not text:
        return MAX_PIXELS
    if not text.isascii() or not text.isdigit() or not 0 < int(text[:20]) < 2**62:
        raise UserError(f"L2P_MAX_PIXELS is {text[:40]!r}, expected a number of pixels such as {MAX_PIXELS}")
    return int(text[:20])


def open_picture(file: PathLike | BinaryIO, name: str, formats: Sequence[str] = FORMATS) -> Image.Image:
    """A picture whose size is known and not too large, not yet decoded.

    Raises:
        UserError: no picture of these formats, or more than :func:`max_pixels`.
    """
    from PIL import Image

    readable_suffixes()  # registers plugins
    limit = max_pixels()
    Image.MAX_IMAGE_PIXELS = limit  # an error beyond twice as much; for what a decoder finds out later
    with warnings.catch_warnings(), decoding(name):
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image = Image.open(file, formats=[kind for kind in formats if kind in Image.OPEN])
    width, height = image.size
    if width * height > limit:
        image.close()
        raise _too_large(
            name, f"{width} x {height} are {width * height:,} pixels, at most {limit:,} are read"
        )
    return image


@contextmanager
def decoding(name: str) -> Iterator[None]:
    """What Pillow raises for a broken picture, of whatever kind, as a UserError."""
    from PIL import Image

    try:
        yield
    except (UserError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise _too_large(name, str(error)) from error
    except Exception as error:  # parsers of 16 formats raise whatever a strange file leads them to
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        hint = next((f" ({do})" for suffix, do in PLUGINS.items() if name.lower().endswith(suffix)), "")
        raise UserError(f"{name} is no picture or is cut short: {reason}{hint}") from error


def _too_large(name: str, reason: str) -> UserError:
    return UserError(
        f"{name} is too large: {reason}; set L2P_MAX_PIXELS in the environment to read larger ones"
    )


@lru_cache(maxsize=1)
def readable_suffixes() -> frozenset[str]:
    """Suffixes of the pictures that Pillow reads here, plugins that are installed included."""
    from PIL import Image, features

    for name, register in (("pillow_heif", "register_heif_opener"), ("pillow_jxl", "")):
        try:
            plugin = import_module(name)
        except ImportError:
            continue
        if register:
            getattr(plugin, register)()
    Image.init()
    missing = {"JPEG2000"} if not features.check("jpg_2000") else set()
    known = Image.registered_extensions()
    return frozenset(s for s in PICTURES if known.get(s) in Image.OPEN and known[s] not in missing)


def read_picture(path: PathLike | BinaryIO, name: str | None = None) -> Pictures:
    """The picture in a file, or in an open one that is called `name`: sRGB, uint8 [H, W, 3].

    The first frame of several, rotated as EXIF says, converted to sRGB by its ICC profile (or what else states its colours,
    see :mod:`l2p.colour`), composited on white where it is transparent. The range of the levels follows from the file's format: 16 bits are 0 to 65535,
    floating levels are 0 to 1. CMYK without a profile is converted without colour management.

    Raises:
        UserError: no picture, cut short, too large, or levels without a known range.
    """
    from PIL import ImageOps

    name = str(name or path)
    # An open file, never a path: Pillow 13 maps uncompressed TIFF files into memory, and then transposes them wrongly.
    with decoding(name), ExitStack() as stack:
        file = stack.enter_context(open(path, "rb")) if isinstance(path, (str, os.PathLike)) else path
        image = stack.enter_context(open_picture(file, name))
        if getattr(image, "is_animated", False) and image.format != "MPO":  # to count frames may take minutes
            warn(f"{name} holds several frames: the first one is read")
        image.info[SPACE] = stated_space(image, file, name)
        _scale_transparency(image, file)
        ImageOps.exif_transpose(image, in_place=True)
        levels = _grey_levels(image, name) if image.mode == "F" or image.mode[0] == "I" else None
        # In pieces: the copies that a conversion makes of a whole picture take several times its memory.
        picture = np.empty((image.height, image.width, 3), np.uint8)
        for left, top, right, bottom in _boxes(image):
            piece = _with_info(image.crop((left, top, right, bottom)), image.info)
            if levels is not None:
                piece = _grey_8bit(piece, levels)
            picture[top:bottom, left:right] = np.asarray(_on_white(piece, name))
        return picture


def _boxes(image: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    """Left, top, right and bottom of pieces that cover the picture, each of at most ``PIECE`` pixels."""
    width = min(image.width, PIECE)
    height = PIECE // max(1, width)
    for top in range(0, image.height, height):
        for left in range(0, image.width, width):
            yield left, top, min(left + width, image.width), min(top + height, image.height)


def _grey_levels(image: Image.Image, name: str) -> tuple[float, bool]:
    """The level that is white, and whether the levels are turned round, of grey levels of more than 8 bits: as the file's
    format says, never as its content does."""
    tags = getattr(image, "tag_v2", {})
    white_is_zero = tags.get(PHOTOMETRIC) == WHITE_IS_ZERO
    if image.mode == "F":
        low, high = 0.0, 0.0
        for box in _boxes(image):
            values = np.asarray(image.crop(box))
            if not np.isfinite(values).all():
                raise UserError(f"{name} holds NaN or infinite levels")
            low, high = min(low, values.min(initial=0)), max(high, values.max(initial=0))
        if low < -FLOAT_SLACK or high > 1 + FLOAT_SLACK:
            raise UserError(
                f"{name} holds floating levels from {low:g} to {high:g}, expected 0 (black) to 1 (white): scale them first"
            )
        return 1.0, white_is_zero
    if image.mode.startswith("I;16") or image.format in ("PNG", "PPM"):
        bits = tags.get(BITS_PER_SAMPLE, (16,))[0]
        if not 8 < bits <= 16:
            raise UserError(f"{name} holds grey levels of {bits} bits, expected up to 16")
        return 2**bits - 1, white_is_zero
    raise UserError(
        f"{name} holds whole levels of 32 bits or with a sign, whose range no file states: save it with 8 or 16 bits"
    )


def _scale_transparency(image: Image.Image, file: BinaryIO) -> None:
    """The level that a PNG's chunk tRNS makes transparent, which it states in the file's depth, in that of the picture as it
    is decoded: 8 bits, of 16 bits a colour the upper half. 16 bits of grey are kept."""
    clear = image.info.get("transparency")
    if image.format != "PNG" or isinstance(clear, bytes) or clear is None or image.mode[0] == "I":
        return
    depth = (png_chunk(file, b"IHDR") or bytes(9))[8]
    if depth == 16 and image.mode == "RGB":
        image.info["transparency"] = tuple(level >> 8 for level in clear)
    elif depth in (1, 2, 4) and image.mode in ("1", "L"):
        image.info["transparency"] = clear * 255 // (2**depth - 1)


def _grey_8bit(piece: Image.Image, levels: tuple[float, bool]) -> Image.Image:
    """Grey levels, see :func:`_grey_levels`, rounded to 8 bits; with an alpha channel where one level is transparent."""
    from PIL import Image

    info = dict(piece.info)
    clear = info.pop("transparency", None)
    grey = _rounded(piece, levels)
    if clear is not None:
        grey = Image.merge(
            "LA", (grey, Image.fromarray(np.where(np.asarray(piece) == clear, 0, 255).astype(np.uint8)))
        )
    return _with_info(grey, info)


def _rounded(piece: Image.Image, levels: tuple[float, bool]) -> Image.Image:
    from PIL import Image

    top, white_is_zero = levels
    values = np.asarray(piece).clip(0, top)
    if white_is_zero:
        values = top - values
    if piece.mode == "F":
        return Image.fromarray(np.rint(values * np.float64(255)).astype(np.uint8))
    # top is odd: no level lies in the middle between two
    table = ((np.arange(top + 1) * 510 + top) // (2 * top)).astype(np.uint8)
    return Image.fromarray(table[values])


def _on_white(image: Image.Image, name: str) -> Image.Image:
    """An 8-bit picture of any mode as sRGB without transparency."""
    from PIL import Image

    if image.mode in ("RGBa", "La"):
        image = image.convert("RGBA" if image.mode == "RGBa" else "LA")
    if image.mode not in ("RGBA", "LA", "PA") and "transparency" not in image.info:
        return _to_srgb(image, name)
    info, image = dict(image.info), image.convert("RGBA")
    colours = image.convert("RGB")
    colours.info = info
    colours = _to_srgb(colours, name)
    colours.putalpha(image.getchannel("A"))
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), colours).convert("RGB")


def _to_srgb(image: Image.Image, name: str) -> Image.Image:
    """An opaque 8-bit picture in sRGB, converted by its profile; as it is where there is none or a broken one."""
    from PIL import ImageCms

    grey, space = image.mode in ("L", "1"), image.info.get(SPACE)
    profile = None if space else image.info.get("icc_profile")
    if image.mode not in ("L", "RGB", "CMYK", "LAB"):
        image = _with_info(image.convert("L" if grey else "RGB"), image.info)
    if profile:
        try:
            opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            mode = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}[
                opened.profile.xcolor_space.strip()
            ]
            if mode == "RGB" and image.mode == "L":
                image = image.convert("RGB")  # grey levels tagged with a colour profile
            if mode != image.mode:
                raise ValueError(f"it is for {mode}, the picture is {image.mode}")
            return _transform(image, opened)
        except (ImageCms.PyCMSError, OSError, ValueError, KeyError, TypeError) as error:
            warn(f"the colour profile of {name} cannot be used ({error}): it is read as sRGB")
    elif space is None and "icc_profile" in image.info:
        warn(f"the colour profile of {name} is broken: it is read as sRGB")
    if image.mode == "LAB":
        return _transform(image, ImageCms.createProfile("LAB"))
    if space is not None:
        return space.to_srgb(image if image.mode in ("RGB", "L") else image.convert("RGB"))
    return image.convert("RGB")


def _with_info(image: Image.Image, info: dict) -> Image.Image:
    image.info = dict(info)
    return image


def _transform(image: Image.Image, profile: object) -> Image.Image:
    from PIL import ImageCms

    return ImageCms.profileToProfile(
        image,
        profile,
        ImageCms.createProfile("sRGB"),
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        outputMode="RGB",
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )


def save_png(picture: Pictures, path: PathLike, made_from: Mapping[str, Any] | None = None) -> None:
    """Writes uint8 [H, W, 3] as PNG, whole or not at all.

    Args:
        made_from: JSON values kept in the file: what it was made from (see :mod:`l2p.artifacts`).
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    text = None if made_from is None else json.dumps(made_from)
    with atomic_path(path) as partial:
        if picture.nbytes > LARGE:  # Pillow would first copy it, at four bytes a pixel
            _write_png(picture, partial, text)
        else:
            info = PngInfo()
            if text is not None:
                info.add_text(PNG_KEY, text)
            Image.fromarray(picture).save(partial, format="PNG", pnginfo=info)


def made_from_of(path: PathLike) -> dict[str, Any] | None:
    """What :func:`save_png` noted in a picture; None where it notes nothing.

    Raises:
        UserError: the picture is damaged.
    """
    read_picture(path)  # all of it, against its own checksums
    with open_picture(path, str(path)) as image:
        text = image.info.get(PNG_KEY)
    try:
        found = json.loads(text) if isinstance(text, str) else None
    except ValueError:
        raise UserError(f"{path} is damaged: what it was made from cannot be read") from None
    return found if isinstance(found, dict) else None


def _write_png(picture: Pictures, path: PathLike, text: str | None = None) -> None:
    """PNG (ISO/IEC 15948) some rows at a time, each number stored as its difference to the pixel on its left."""
    height, width, _ = picture.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    compressor = zlib.compressobj(4)
    with open(path, "wb") as file:
        file.write(
            b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        )
        if text is not None:
            file.write(chunk(b"tEXt", PNG_KEY.encode() + b"\0" + text.encode("ascii")))
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
