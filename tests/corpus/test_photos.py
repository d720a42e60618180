from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from l2p.corpus.photos import Photos
from l2p.errors import UserError, UserNotice
from tests.hub.conftest import hub  # noqa: F401
from tests.hub.local_hub import Repo


def encoded(grey: int, height: int = 40, width: int = 60, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), grey, np.uint8)).save(buffer, kind, **options)
    return buffer.getvalue()


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:  # PAX headers and folders, as others write them
        tar.addfile(tarfile.TarInfo("deep"))
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            info.pax_headers = {"comment": "x" * 200}
            tar.addfile(info, io.BytesIO(data))
    return str(path)


def found(photos):
    return [(int(photos.crop(i, 32, 32)[0].mean()), photos.crop(i, 32, 32)[1]) for i in range(len(photos))]


def test_a_folder_with_captions_of_three_kinds_and_without(tmp_path):
    (tmp_path / "sub").mkdir()
    for name, grey in {"a.png": 10, "b.png": 20, "sub/c.png": 30, "d.png": 40}.items():
        (tmp_path / name).write_bytes(encoded(grey))
    (tmp_path / "a.txt").write_text("a  barn\n")
    (tmp_path / "b.json").write_text(json.dumps({"id": 3, "caption": "a lake"}))
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "sub/c.png", "text": "a hill"}) + "\n")
    assert found(Photos([str(tmp_path)], 32, 32)) == [
        (10, "a barn"),
        (20, "a lake"),
        (40, ""),
        (30, "a hill"),
    ]


def test_a_tar_of_others_with_long_headers(tmp_path):
    members = {"deep/x.png": encoded(10), "deep/x.txt": b"a barn", "y.jpg": encoded(90, kind="JPEG", quality=95), "y.json": b'{"text": "a lake"}'}  # fmt: skip
    assert found(Photos([write_tar(tmp_path / "p.tar", members)], 32, 32)) == [(10, "a barn"), (90, "a lake")]


def test_a_corpus_is_a_source_too(straight):
    photos = Photos([str(straight)], 16, 24)
    from l2p.corpus import CorpusDataset

    whole = CorpusDataset(straight)
    assert len(photos) == 11
    picture, caption = photos.crop(6, 16, 24)
    assert np.array_equal(picture, whole[6]["image"]) and caption == whole[6]["prompt"]


def test_a_data_set_of_the_hub(hub):  # noqa: F811
    repo = hub.repos["ann/photos"] = Repo()
    repo.commit(
        "main", {"train/a.png": encoded(50), "train/a.txt": b"a barn", "loader.py": b"raise SystemExit"}
    )
    assert found(Photos(["hub:ann/photos"], 32, 32)) == [(50, "a barn")]
    assert not hub.count("GET", r"/resolve/.*loader\.py")


def test_small_ones_are_left_out_and_turned_ones_are_measured_as_seen(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn: 60 x 40 as it lies, 40 x 60 as it is seen
    (tmp_path / "turned.jpg").write_bytes(encoded(10, 40, 60, "JPEG", exif=exif))
    (tmp_path / "flat.png").write_bytes(encoded(20, 40, 60))
    photos = Photos([str(tmp_path)], 60, 40)
    assert len(photos) == 1 and photos.too_small == 1
    assert photos.crop(0, 60, 40)[0].shape == (60, 40, 3)
    with pytest.raises(UserError, match="has no picture of 100 x 100 pixels or more, and 2 smaller ones"):
        Photos([str(tmp_path)], 100, 100)


def test_a_crop_covers_is_of_the_whole_height_and_lies_where_its_generator_says(tmp_path):
    ramp = np.broadcast_to(np.arange(200, dtype=np.uint8)[None, :, None], (50, 200, 3))
    Image.fromarray(np.ascontiguousarray(ramp)).save(tmp_path / "ramp.png")
    photos = Photos([str(tmp_path)], 50, 50)
    middle = photos.crop(0, 50, 50)[0]
    assert (middle[0, 0, 0], middle[0, -1, 0]) == (75, 124)
    left = {
        int(photos.crop(0, 50, 50, torch.Generator().manual_seed(seed))[0][0, 0, 0]) for seed in range(300)
    }
    assert min(left) <= 3 and max(left) >= 147 and max(left) <= 150  # all the way, and no further


@pytest.mark.parametrize("data", [b"", b"no picture", encoded(9)[:40]])
def test_a_broken_picture_is_named(tmp_path, data):
    (tmp_path / "broken.png").write_bytes(data)
    with pytest.raises(UserError, match=r"broken\.png is no picture or is cut short") as error:
        Photos([str(tmp_path)], 8, 8)
    assert "\n" not in str(error.value)


def test_a_picture_cut_short_behind_its_header_is_named_when_it_is_read(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "cut.png")
    data = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    photos = Photos([str(tmp_path)], 8, 8)
    with pytest.raises(UserError, match=r"cut\.png is no picture or is cut short"):
        photos.crop(0, 8, 8)
    write_tar(tmp_path / "t.tar", {"a.png": encoded(3)})
    (tmp_path / "t.tar").write_bytes((tmp_path / "t.tar").read_bytes()[:700])  # in the middle of a header
    with pytest.raises(UserError, match=r"t\.tar is no tar or is cut short|has no picture"):
        Photos([str(tmp_path / "t.tar")], 8, 8)


def test_nothing_there(tmp_path):
    with pytest.raises(UserError, match="no such file or directory: .*nowhere"):
        Photos([str(tmp_path / "nowhere")], 8, 8)
    with pytest.raises(UserError, match="has no file that ends in"):
        Photos([str(tmp_path)], 8, 8)


def test_captions_by_every_usual_name_and_a_line_about_the_rest(tmp_path):
    for name, grey in {
        "a.png": 10,
        "b.jpg": 20,
        "img.1.png": 30,
        "img.2.png": 40,
        "c.avif": 50,
        "d.jp2": 60,
    }.items():
        kind = {"jpg": "JPEG", "avif": "AVIF", "jp2": "JPEG2000"}.get(name.rpartition(".")[2], "PNG")
        (tmp_path / name).write_bytes(encoded(grey, kind=kind))
    (tmp_path / "small.png").write_bytes(encoded(9, 8, 8))
    for name in ("x.heic", "y.jxl", "clip.mp4"):
        (tmp_path / name).write_bytes(b"x")
    texts = {
        "a.caption": "a barn",
        "b.jpg.txt": "a lake",
        "img.1.txt": "one",
        "img.2.txt": "two",
        "LICENSE.txt": "no caption",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-16" if name == "a.caption" else "utf-8-sig")
    (tmp_path / "metadata.csv").write_text("file_name,caption\nc.avif,a hill\ngone.png,nothing\n")
    with pytest.warns(UserNotice) as lines:
        photos = Photos([str(tmp_path)], 32, 32)
    assert [(round(grey, -1), text) for grey, text in found(photos)] == [
        (10, "a barn"), (20, "a lake"), (50, "a hill"), (60, ""), (30, "one"), (40, "two"),
    ]  # fmt: skip
    (line,) = [str(line.message) for line in lines]
    for part in (
        "6 pictures are read, 1 of them without a caption; left out: 1 smaller than 32 x 32",
        "1 .heic (which Pillow cannot read here: pip install pillow-heif)",
        "1 .jxl (which Pillow",
        "1 texts of no picture (LICENSE.txt)",
        "1 rows of metadata.csv of no picture (gone.png)",
        "1 other files (.mp4)",
    ):
        assert part in line


def test_dotted_members_of_a_tar(tmp_path):
    members = {"./img.1.png": encoded(10), "./img.1.txt": b"one", "img.2.png": encoded(20), "img.2.png.txt": b"two",
               "s.image.png": encoded(30), "s.json": b'{"caption": "sample"}', "x.heic": b"x", "odd.txt": b"?"}  # fmt: skip
    with pytest.warns(
        UserNotice, match=r"3 pictures are read; left out: 1 \.heic .*1 texts of no picture in p\.tar"
    ):
        photos = Photos([write_tar(tmp_path / "p.tar", members)], 32, 32)
    assert found(photos) == [(10, "one"), (20, "two"), (30, "sample")]


def test_a_caption_in_another_encoding_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(10))
    (tmp_path / "a.txt").write_bytes("un été".encode("latin-1"))
    with pytest.raises(UserError, match=r"a\.txt:1 is no UTF-8"):
        Photos([str(tmp_path)], 8, 8)
