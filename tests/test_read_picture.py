"""The one reader of pictures: colour profiles, ranges, modes, against independent formulas."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from l2p.errors import UserError, UserNotice
from l2p.images import read_picture, readable_suffixes

ROCKET = Path(pytest.importorskip("skimage").data_dir) / "rocket.jpg"  # a photograph in Adobe RGB (1998)


def srgb(linear):
    """IEC 61966-2-1."""
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def from_adobe_rgb(levels):
    """Adobe RGB (1998) Color Image Encoding, 4.3: its gamma and primaries, then those of sRGB; both have D65."""
    xyz = np.array(
        [[0.57667, 0.18556, 0.18823], [0.29734, 0.62736, 0.07529], [0.02703, 0.07069, 0.99134]]
    ) @ ((levels / 255.0) ** (563 / 256))[..., None]  # fmt: skip
    back = [[3.2404542, -1.5371385, -0.4985314], [-0.9692660, 1.8760108, 0.0415560], [0.0556434, -0.2040259, 1.0572252]]  # fmt: skip
    return srgb((np.array(back) @ xyz)[..., 0].clip(0, 1))


def test_a_photograph_in_adobe_rgb_is_converted_by_its_profile():
    raw = np.asarray(Image.open(ROCKET))
    wanted = from_adobe_rgb(raw)
    assert np.abs(raw - wanted).max() > 50  # what ignoring the profile costs
    assert np.abs(read_picture(ROCKET) - wanted).max() < 1


def test_alpha_is_kept_apart_from_the_profile(tmp_path):
    photo = Image.open(ROCKET)
    profile = photo.info["icc_profile"]
    part = photo.crop((50, 40, 66, 56))
    half = part.copy()
    half.putalpha(51)
    half.save(tmp_path / "half.png", icc_profile=profile)
    wanted = 0.2 * from_adobe_rgb(np.asarray(part)) + 0.8 * 255  # on white
    assert np.abs(read_picture(tmp_path / "half.png") - wanted).max() < 2


@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_an_srgb_profile_changes_nothing(tmp_path, mode):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    image = Image.fromarray(noise).convert(mode)
    image.save(tmp_path / "a.png", icc_profile=profile)
    assert np.abs(read_picture(tmp_path / "a.png").astype(int) - np.asarray(image.convert("RGB"))).max() <= 1


@pytest.mark.parametrize("profile", [b"no profile", None])
def test_a_broken_profile_is_told_and_the_picture_read_plainly(tmp_path, profile):
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    if profile is None:  # one for CMYK on an RGB picture
        lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
        profile = lab
    Image.fromarray(noise).save(tmp_path / "a.png", icc_profile=profile)
    with pytest.warns(UserNotice, match=r"colour profile of .*a\.png cannot be used"):
        assert np.array_equal(read_picture(tmp_path / "a.png"), noise)


def test_16_bits_are_0_to_65535_whatever_the_levels_are(tmp_path):
    levels = np.array([[0, 1, 200, 255], [256, 257, 32768, 65535]], np.uint16)
    wanted = np.rint(levels / 65535 * 255)
    for part in (levels, levels[:1]):  # a dark picture stays dark
        for name in ("a.png", "a.tif", "a.pgm", "a.jp2"):
            options = {"irreversible": False} if name == "a.jp2" else {}
            Image.fromarray(part).save(tmp_path / name, **options)
            assert np.array_equal(read_picture(tmp_path / name)[..., 0], wanted[: len(part)]), name


def test_the_bits_and_the_white_that_a_tiff_names(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    levels = np.array([[0, 1, 30000, 65535]], np.uint16)
    tifffile.imwrite(tmp_path / "w.tif", levels, photometric="miniswhite")
    assert read_picture(tmp_path / "w.tif")[0, :, 0].tolist() == [255, 255, 138, 0]
    tifffile.imwrite(tmp_path / "b.tif", levels, byteorder=">", photometric="minisblack")
    assert read_picture(tmp_path / "b.tif")[0, :, 0].tolist() == [0, 0, 117, 255]
    for kind in (np.int16, np.int32, np.uint32):
        tifffile.imwrite(tmp_path / "s.tif", levels.astype(kind), photometric="minisblack")
        with pytest.raises(UserError, match="32 bits or with a sign|no picture"):
            read_picture(tmp_path / "s.tif")


def test_floating_levels_are_0_to_1_or_refused(tmp_path):
    levels = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    Image.fromarray(levels).save(tmp_path / "a.tif")
    assert np.array_equal(read_picture(tmp_path / "a.tif")[..., 1], np.rint(levels * 255))
    for wrong in (levels * 255, levels * 65535, levels - 0.5):
        Image.fromarray(wrong).save(tmp_path / "b.tif")
        with pytest.raises(UserError, match="holds floating levels from .* expected 0 .black. to 1"):
            read_picture(tmp_path / "b.tif")
    Image.fromarray(np.full((2, 2), np.nan, np.float32)).save(tmp_path / "n.tif")
    with pytest.raises(UserError, match="NaN"):
        read_picture(tmp_path / "n.tif")


def test_a_png_says_its_gamma(tmp_path):
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for gamma, wanted in ((1.0, srgb(levels / 255)), (0.45455, levels)):
        chunks = PngImagePlugin.PngInfo()
        chunks.add(b"gAMA", int(gamma * 100_000).to_bytes(4, "big"))
        Image.fromarray(levels).save(tmp_path / "a.png", pnginfo=chunks)
        assert np.abs(read_picture(tmp_path / "a.png")[..., 2] - wanted).max() <= 0.5


def test_cmyk_with_a_profile_of_another_space_is_told(tmp_path):
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    image.save(tmp_path / "plain.jpg", quality=100)
    assert np.abs(read_picture(tmp_path / "plain.jpg")[0, 0].astype(int) - [255, 0, 0]).max() <= 3
    image.save(tmp_path / "a.jpg", icc_profile=Image.open(ROCKET).info["icc_profile"])
    with pytest.warns(UserNotice, match="it is for RGB, the picture is CMYK"):
        read_picture(tmp_path / "a.jpg")


def test_lab_palettes_and_transparency(tmp_path):
    lab = ImageCms.profileToProfile(
        Image.new("RGB", (4, 4), (200, 60, 30)), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )  # fmt: skip
    lab.save(tmp_path / "lab.tif")
    assert np.abs(read_picture(tmp_path / "lab.tif")[0, 0].astype(int) - [200, 60, 30]).max() <= 2
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 200, 30])
    palette.save(tmp_path / "p.png")
    assert read_picture(tmp_path / "p.png")[0, 0].tolist() == [10, 200, 30]
    palette.save(tmp_path / "t.png", transparency=1)
    assert read_picture(tmp_path / "t.png")[0, 0].tolist() == [255, 255, 255]
    Image.new("LA", (4, 4), (100, 0)).save(tmp_path / "la.png")
    assert read_picture(tmp_path / "la.png")[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("mode", ["RGB", "L", "I;16", "F"])
def test_orientation_holds_in_every_mode(tmp_path, mode):
    ramp = np.arange(8).reshape(2, 4) / 7
    image = {
        "RGB": Image.fromarray(np.rint(ramp * 255).astype(np.uint8)).convert("RGB"),
        "L": Image.fromarray(np.rint(ramp * 255).astype(np.uint8)),
        "I;16": Image.fromarray(np.rint(ramp * 65535).astype(np.uint16)),
        "F": Image.fromarray(ramp.astype(np.float32)),
    }[mode]
    exif = Image.Exif()
    exif[0x0112] = 6  # seen upright after a quarter turn clockwise
    image.save(tmp_path / "a.tif", exif=exif)
    assert np.array_equal(read_picture(tmp_path / "a.tif")[..., 0], np.rot90(np.rint(ramp * 255), -1))


def test_of_several_frames_the_first_is_read_and_told(tmp_path):
    frames = [Image.new("L", (4, 4), level) for level in (10, 200)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    with pytest.warns(UserNotice, match=r"a\.gif holds several frames: the first one is read"):
        assert read_picture(tmp_path / "a.gif")[0, 0, 0] == 10


def test_an_open_file_has_its_name(tmp_path):
    with pytest.raises(UserError, match=r"^x in y is no picture"):
        read_picture(io.BytesIO(b"nothing"), "x in y")


def test_a_format_that_needs_a_plugin_says_which(tmp_path):
    (tmp_path / "a.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    if ".heic" not in readable_suffixes():
        with pytest.raises(UserError, match=r"a\.HEIC is no picture .*pip install pillow-heif"):
            read_picture(tmp_path / "a.HEIC")
    assert {
        ".png",
        ".jpg",
        ".webp",
        ".tif",
        ".avif",
    } <= readable_suffixes() and ".svg" not in readable_suffixes()


def png(data, *chunks, depth=8, colour=2):
    """A PNG (ISO/IEC 15948) of levels [H, W] or [H, W, 3] with more chunks before the pixels."""
    wide = data.astype(">u2") if depth == 16 else data.astype(np.uint8)
    rows = np.packbits(np.unpackbits(wide[..., None], axis=-1)[..., 8 - depth :].reshape(len(data), -1), axis=-1) if depth < 8 else wide  # fmt: skip
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", data.shape[1], data.shape[0], depth, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    made = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts)
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + b"".join(made))


NOISE = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
ADOBE = struct.pack(">8I", 31270, 32900, 64000, 33000, 21000, 71000, 15000, 6000)


def from_display_p3(levels):
    """SMPTE EG 432-1's matrix to XYZ, then that of sRGB (IEC 61966-2-1)."""
    v = levels / 255.0
    light = np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)[..., None]
    xyz = [
        [0.4865709, 0.2656677, 0.1982173],
        [0.2289746, 0.6917385, 0.0792869],
        [0.0, 0.0451134, 1.0439444],
    ] @ light
    back = [[3.2404542, -1.5371385, -0.4985314], [-0.9692660, 1.8760108, 0.0415560], [0.0556434, -0.2040259, 1.0572252]]  # fmt: skip
    return srgb((np.array(back) @ xyz)[..., 0].clip(0, 1))


@pytest.mark.parametrize(
    ("chunks", "wanted"),
    [
        ([(b"cHRM", ADOBE), (b"gAMA", struct.pack(">I", 45470))], from_adobe_rgb),  # 256 / 563
        ([(b"cICP", bytes([12, 13, 0, 1]))], from_display_p3),
        ([(b"cICP", bytes([1, 13, 0, 1])), (b"gAMA", struct.pack(">I", 100000))], None),
        ([(b"sRGB", b"\0"), (b"cHRM", ADOBE)], None),
        ([(b"cHRM", bytes(32))], None),
    ],
)
def test_colours_that_chunks_of_a_png_state_are_converted(chunks, wanted):
    found = read_picture(png(NOISE, *chunks), "a.png")
    assert np.abs(found - (NOISE if wanted is None else wanted(NOISE))).max() <= 1
    assert wanted is None or np.abs(found - NOISE.astype(int)).max() > 20


def test_colours_that_are_not_converted_are_named():
    with pytest.warns(UserNotice, match=r"a\.png states the colours 9/16 \(cICP\)"):
        assert np.array_equal(read_picture(png(NOISE, (b"cICP", bytes([9, 16, 0, 1]))), "a.png"), NOISE)


def test_exif_says_adobe_rgb(tmp_path):
    flat = np.zeros((16, 16, 3), np.uint8) + np.array([60, 200, 90], np.uint8)
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA005] = {1: "R03"}
    Image.fromarray(flat).save(tmp_path / "a.jpg", quality=100, subsampling=0, exif=exif)
    raw = np.asarray(Image.open(tmp_path / "a.jpg"))
    assert np.abs(read_picture(tmp_path / "a.jpg") - from_adobe_rgb(raw)).max() <= 1
    assert np.abs(from_adobe_rgb(raw) - raw).max() > 20


@pytest.mark.parametrize(
    ("depth", "colour", "levels", "clear"),
    [
        (16, 0, [300, 301, 60000], 300),
        (4, 0, [3, 4, 15], 3),
        (1, 0, [0, 1, 0], 1),
        (16, 2, [0x1234, 0x5678, 0xFFFF], 0x5678),
    ],
)
def test_the_transparent_level_is_meant_in_the_depth_of_the_file(depth, colour, levels, clear):
    data = np.array([levels]) if colour == 0 else np.array([[[v] * 3 for v in levels]])
    trns = struct.pack(">H", clear) if colour == 0 else struct.pack(">3H", clear, clear, clear)
    found = read_picture(png(data, (b"tRNS", trns), depth=depth, colour=colour), "a.png")[0, :, 0]
    top = 2**depth - 1
    wanted = [255 if level == clear else 255 * level / top for level in levels]
    assert np.abs(found - wanted).max() <= 1
