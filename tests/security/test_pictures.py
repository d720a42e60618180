"""Pictures of strangers: bounded in memory and time, and no program is started for them."""

from __future__ import annotations

import os
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from l2p.corpus.photos import Photos
from l2p.corpus.samples import decode_image
from l2p.errors import UserError
from l2p.evaluation.pictures import _are_mixed
from l2p.images import made_from_of, read_picture
from l2p.picture_folder import Picture


def png(width: int, height: int, data: bytes = b"", bits: int = 8, colour: int = 2) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    start = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", start) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def webp(width: int, height: int) -> bytes:
    size = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + size + b"VP8L" + struct.pack("<I", 6)
    bits = (width - 1 & 0x3FFF) | (height - 1 & 0x3FFF) << 14
    body += b"\x2f" + struct.pack("<I", bits) + b"\0"
    return b"RIFF" + struct.pack("<I", len(body)) + body


def tiff(width: int, height: int) -> bytes:
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    tags += [(273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, width * height % 2**32)]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + entries + bytes(4)


SIDE = 30_000
BOMBS = {
    "png": png(SIDE, SIDE, zlib.compress(bytes(SIDE * 3 + 1) * 300, 9)),
    "png of the largest size": png(2**31 - 1, 2**31 - 1),
    "webp": webp(16383, 16384 * 16),
    "tiff": tiff(SIDE, SIDE),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_small_file_of_a_huge_picture_is_refused(tmp_path, name, frugal):
    path = tmp_path / f"bomb.{name.split()[0]}"
    path.write_bytes(BOMBS[name])
    with pytest.raises(UserError, match="is too large|is no picture") as caught:
        read_picture(path)
    assert "\n" not in str(caught.value)
    if name != "webp":
        assert "L2P_MAX_PIXELS" in str(caught.value)
    with pytest.raises((UserError, OSError, ValueError)):
        decode_image(BOMBS[name])
    with pytest.raises(UserError):
        Photos([str(tmp_path)], 64, 64)


def test_the_limit_of_pictures_is_the_users(tmp_path, monkeypatch):
    Image.fromarray(np.zeros((100, 100, 3), np.uint8)).save(tmp_path / "a.png")
    assert read_picture(tmp_path / "a.png").shape == (100, 100, 3)
    monkeypatch.setenv("L2P_MAX_PIXELS", "9999")
    with pytest.raises(
        UserError, match="100 x 100 are 10,000 pixels, at most 9,999 are read; set L2P_MAX_PIXELS"
    ):
        read_picture(tmp_path / "a.png")
    monkeypatch.setenv("L2P_MAX_PIXELS", "10000")
    assert read_picture(tmp_path / "a.png").shape == (100, 100, 3)
    for wrong in ("many", "-1", "0", "1e9", "9" * 30):
        monkeypatch.setenv("L2P_MAX_PIXELS", wrong)
        with pytest.raises(UserError, match="expected a number of pixels"):
            read_picture(tmp_path / "a.png")


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n{ } loop\n%%EOF\n"


def test_no_program_is_started_for_a_picture(tmp_path, monkeypatch):
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho 10.0\necho ran >> {tmp_path}/ran\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    path = tmp_path / "in" / "photo.png"
    path.parent.mkdir()
    path.write_bytes(EPS)
    for read in (
        lambda: read_picture(path),
        lambda: made_from_of(path),
        lambda: Photos([str(path.parent)], 8, 8),
        lambda: _are_mixed([Picture(path)]),
    ):
        with pytest.raises(UserError, match="is no picture"):
            read()
    with pytest.raises(ValueError):
        decode_image(EPS)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("bits", "colour", "levels"), [(16, 0, 2), (8, 6, 4)], ids=["grey", "alpha"])
def test_a_picture_within_the_limit_takes_little_more_than_its_pixels(tmp_path, frugal, bits, colour, levels):
    side, lines = 4096, zlib.compressobj(9)
    data = b"".join(lines.compress(bytes(side * levels + 1)) for _ in range(side)) + lines.flush()
    (tmp_path / "a.png").write_bytes(png(side, side, data, bits, colour))
    assert read_picture(tmp_path / "a.png").shape == (side, side, 3)


def test_a_chain_of_frames_is_not_counted(tmp_path):
    tags = [(256, 3, 1, 1), (257, 3, 1, 1), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    frame = b"".join(struct.pack("<HHII", *tag) for tag in [*tags, (273, 4, 1, 8), (279, 4, 1, 1)])
    count, size = 45_000, len(frame) + 6
    chain = (
        struct.pack("<H", 7) + frame + struct.pack("<I", (8 + (i + 1) * size) * (i < count - 1))
        for i in range(count)
    )
    (tmp_path / "a.tif").write_bytes(b"II*\0" + struct.pack("<I", 8) + b"".join(chain))
    start = time.process_time()
    assert read_picture(tmp_path / "a.tif").shape == (1, 1, 3)
    assert time.process_time() - start < 3


EXIF = {
    "BigTIFF": b"Exif\0\0II+\0\x08\0\0\0" + b"\xff" * 16,
    "short": b"Exif\0\0II",
    "a loop": b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\x03\0\xff\xff\xff\xff\0\0\0\0" * 5,
    "no TIFF": b"Exif\0\0XXXX",
}


@pytest.mark.parametrize("exif", EXIF.values(), ids=EXIF)
def test_broken_facts_in_a_picture_end_in_one_line(tmp_path, exif):
    Image.new("RGB", (16, 16)).save(tmp_path / "a.jpg", exif=exif)
    for read in (lambda: read_picture(tmp_path / "a.jpg"), lambda: Photos([str(tmp_path)], 8, 8)):
        try:
            read()
        except UserError as error:
            assert "\n" not in str(error)
