"""The colour space that a picture without an ICC profile states by other means, and its conversion to sRGB.

PNG's chunks ``cICP`` (code points of ITU-T H.273), ``cHRM`` and ``gAMA`` (ISO/IEC 15948, 3rd edition), in its order of
precedence; and EXIF's interoperability index R03, which means Adobe RGB (DCF 2.0).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.typing import NDArray

from l2p.errors import warn

if TYPE_CHECKING:
    from PIL import Image

Levels = NDArray[np.float64]
D65 = (0.3127, 0.3290)
SRGB_PRIMARIES = (*D65, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)  # x and y of white, red, green, blue
ADOBE_PRIMARIES, ADOBE_GAMMA = (*D65, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06), 563 / 256  # Adobe RGB (1998), 4.3
PRIMARIES = {  # H.273, table 2
    1: SRGB_PRIMARIES,
    5: (*D65, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06),
    6: (*D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    7: (*D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    9: (*D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    11: (0.314, 0.351, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    12: (*D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
}
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
GAMMA, GAMMA_SLACK, CHROMATICITY_SLACK = 1 / 2.2, 0.01, 0.002  # what is taken for sRGB's own
EXIF_INTEROP, INTEROP_INDEX = 0xA005, 1
MOST_CHUNKS = 10_000  # of a PNG before its pixels


@dataclass(frozen=True)
class ColourSpace:
    """How 8-bit levels become linear light of sRGB's primaries.

    Attributes:
        linear: of each of the 256 levels.
        matrix: [3, 3] from linear light here to that of sRGB; None where the primaries are the same.
    """

    linear: Levels
    matrix: Levels | None

    def to_srgb(self, image: Image.Image) -> Image.Image:
        """An RGB or grey picture in sRGB. Colours beyond sRGB are clipped."""
        from PIL import Image

        if self.matrix is None or len(image.getbands()) == 1:
            table = np.rint(255 * encode_srgb(self.linear)).astype(int).tolist()
            return image.point(table * len(image.getbands())).convert("RGB")
        light = self.linear.astype(np.float32)[np.asarray(image)] @ self.matrix.T.astype(np.float32)
        return Image.fromarray(np.rint(255 * encode_srgb(light.clip(0, 1))).astype(np.uint8))


def encode_srgb(linear: Levels) -> Levels:
    """Levels from 0 to 1 of linear light (IEC 61966-2-1)."""
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def decode_srgb(levels: Levels) -> Levels:
    """The inverse of :func:`encode_srgb`."""
    return np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)


def _decode_bt709(levels: Levels) -> Levels:
    return np.where(levels < 0.081, levels / 4.5, ((levels + 0.099) / 1.099) ** (1 / 0.45))


TRANSFERS: dict[int, Callable[[Levels], Levels]] = {  # H.273, table 3
    **dict.fromkeys((1, 6, 14, 15), _decode_bt709),
    4: lambda levels: levels**2.2,
    5: lambda levels: levels**2.8,
    8: lambda levels: levels,
    13: decode_srgb,
}


def stated_space(image: Image.Image, file: BinaryIO, name: str) -> ColourSpace | None:
    """The space that a picture's file states outside of an ICC profile; None for sRGB, and where a profile has precedence.

    Args:
        file: of a PNG, at any place, where it is left.
    """
    cicp = png_chunk(file, b"cICP") if image.format == "PNG" else None
    if cicp is not None and len(cicp) == 4:
        primaries, transfer, _, full = cicp
        if primaries in PRIMARIES and transfer in TRANSFERS and full:
            return _space(TRANSFERS[transfer], PRIMARIES[primaries])
        warn(
            f"{name} states the colours {primaries}/{transfer}{'' if full else ' of a narrow range'} (cICP), which are not "
            "converted: it is read as if they were not stated"
        )
    if image.info.get("icc_profile"):
        return None
    if image.format == "PNG":
        return None if "srgb" in image.info else _png_space(image)
    interop = image.getexif().get_ifd(EXIF_INTEROP).get(INTEROP_INDEX)
    if isinstance(interop, str) and interop.startswith("R03"):
        return _space(lambda levels: levels**ADOBE_GAMMA, ADOBE_PRIMARIES)
    return None


def _png_space(image: Image.Image) -> ColourSpace | None:
    gamma, stated = image.info.get("gamma"), image.info.get("chromaticity")
    primaries = tuple(map(float, stated)) if stated else SRGB_PRIMARIES
    if not gamma or (_is_srgb(primaries) and abs(gamma - GAMMA) <= GAMMA_SLACK):
        curve: Callable[[Levels], Levels] = decode_srgb  # which 1 / 2.2 stands for
    else:
        curve = lambda levels: levels ** (1 / gamma)  # noqa: E731
    try:
        return _space(curve, primaries)
    except (ValueError, np.linalg.LinAlgError):  # a white on a line between primaries, y = 0
        return _space(curve, SRGB_PRIMARIES)


def _is_srgb(primaries: tuple[float, ...]) -> bool:
    return bool(np.abs(np.subtract(primaries, SRGB_PRIMARIES)).max() < CHROMATICITY_SLACK)


def _space(curve: Callable[[Levels], Levels], primaries: tuple[float, ...]) -> ColourSpace | None:
    near = _is_srgb(primaries)
    if near and curve is decode_srgb:
        return None
    matrix = None if near else np.linalg.inv(_to_xyz(SRGB_PRIMARIES)) @ _adapted(primaries)
    return ColourSpace(curve(np.linspace(0, 1, 256)), matrix)


def _to_xyz(primaries: tuple[float, ...]) -> Levels:
    """[3, 3] from linear RGB to XYZ, in which white has Y = 1 (SMPTE RP 177)."""
    white, colours = _xyz(*primaries[:2]), np.stack([_xyz(*primaries[i : i + 2]) for i in (2, 4, 6)], axis=1)
    return colours * np.linalg.solve(colours, white)


def _adapted(primaries: tuple[float, ...]) -> Levels:
    """:func:`_to_xyz`, the white moved to that of sRGB by the Bradford transform (ICC.1, annex E)."""
    here, there = (BRADFORD @ _xyz(*white) for white in (primaries[:2], D65))
    return np.linalg.inv(BRADFORD) @ np.diag(there / here) @ BRADFORD @ _to_xyz(primaries)


def _xyz(x: float, y: float) -> Levels:
    if not (0 <= x <= 1 and 0 < y <= 1):
        raise ValueError("no chromaticity")
    return np.array([x / y, 1.0, (1 - x - y) / y])


def png_chunk(file: BinaryIO, wanted: bytes) -> bytes | None:
    """The data of the first chunk of a PNG of this name before its pixels; None where there is none."""
    place = file.tell()
    try:
        file.seek(8)
        for _ in range(MOST_CHUNKS):
            head = file.read(8)
            if len(head) < 8 or head[4:] == b"IDAT":
                return None
            (length,) = struct.unpack(">I", head[:4])
            if head[4:] == wanted:
                return file.read(min(length, 2**16))
            file.seek(length + 4, 1)
        return None
    finally:
        file.seek(place)
