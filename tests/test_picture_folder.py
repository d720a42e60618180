"""What is read of a folder of pictures, in which order, and what is left out is counted."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from l2p.errors import UserError, UserNotice
from l2p.picture_folder import PictureFolder, holds_pictures, match_captions, natural_key
from l2p.picture_manifest import add_to_manifest


def draw(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (4, 4)).save(folder / name)
    return folder


def names(folder):
    return [picture.path.name for picture in PictureFolder.read(folder).pictures]


def test_natural_order():
    assert sorted(["10", "9", "1", "b2", "b10", "a", "01"], key=natural_key) == [
        "01",
        "1",
        "9",
        "10",
        "a",
        "b2",
        "b10",
    ]


def test_every_format_that_pillow_reads_and_a_count_of_the_rest(tmp_path):
    draw(
        tmp_path,
        "1.png",
        "2.JPG",
        "10.webp",
        "3.avif",
        "4.jp2",
        "5.bmp",
        "6.tiff",
        "7.gif",
        "._1.png",
        ".hidden.png",
    )
    draw(tmp_path / "below", "x.png")
    for name in ("a.svg", "b.cr2", "c.jxl", "notes.md"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.warns(
        UserNotice,
        match=r"8 pictures are read; left out: 1 \.cr2 .*1 \.jxl .*pillow-jxl.*1 \.svg .*1 in folders below",
    ):
        found = names(tmp_path)
    assert found == ["1.png", "2.JPG", "3.avif", "4.jp2", "5.bmp", "6.tiff", "7.gif", "10.webp"]
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "a.cr2").write_bytes(b"x")
    assert holds_pictures(bare)
    assert r"holds 0 pictures (1 .cr2 (which Pillow cannot read here) left out)" in str(
        PictureFolder.read(bare).none_found()
    )


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_manifest_says_prompt_and_seed(tmp_path, kind):
    draw(tmp_path, "1.png", "2.png", "3.png")
    rows = [("2.png", "a\nlake", 5), ("1.png", "a, barn", 7)]
    if kind == "csv":
        (tmp_path / "metadata.csv").write_text(
            'file_name,prompt,seed\n2.png,"a\nlake",5\n1.png,"a, barn",7\n'
        )
    else:
        for name, prompt, seed in [("1.png", "old", 1), *rows]:  # the last row about a file counts
            add_to_manifest(tmp_path, {"file_name": name, "prompt": prompt, "seed": seed})
    found = PictureFolder.read(tmp_path)
    assert [(p.prompt, p.seed) for p in found.pictures] == [("a, barn", 7), ("a\nlake", 5), (None, None)]
    assert found.has_manifest


def test_a_manifest_that_says_nothing_is_refused(tmp_path):
    draw(tmp_path, "1.png")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"image": "1.png", "prompt": "a"}) + "\n")
    with pytest.raises(UserError, match=r"metadata\.jsonl has no column file_name, only image, prompt"):
        PictureFolder.read(tmp_path)
    (tmp_path / "metadata.jsonl").write_text("")
    (tmp_path / "metadata.csv").write_text("file_name,prompt\n1.png,a\n")
    with pytest.raises(UserError, match="keep one of them"):
        PictureFolder.read(tmp_path)


def test_captions_by_every_usual_name():
    texts = {
        "a.txt": "A", "b.caption": "B", "c.jpg.txt": "C", "img.1.txt": "1", "img.2.jpg.caption": "2", "deep/e.TXT": "E",
        "s.caption.txt": "S", "both.txt": "one", "both.caption": "other", "README.txt": "?",
    }  # fmt: skip
    pictures = [
        "a.jpg",
        "b.png",
        "c.jpg",
        "img.1.jpg",
        "img.2.jpg",
        "deep/e.JPG",
        "s.image.png",
        "both.png",
        "bare.png",
    ]
    captions, unused, differing = match_captions(
        pictures, {name: lambda t=text: t for name, text in texts.items()}
    )
    assert captions == dict(zip(pictures, ["A", "B", "C", "1", "2", "E", "S", "one"], strict=False))
    assert unused == ["README.txt"] and differing == 1


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"file_name": "1"}, ("a", None)),
        ({"file_name": "1.PNG", "seed": "1.0"}, ("a", 1)),
        ({"File_Name": "1.png", "Prompt": "A", "Seed": 7.0, "prompt": None}, ("A", 7)),
    ],
)
def test_rows_mean_the_picture_that_they_nearly_name(tmp_path, row, said):
    draw(tmp_path, "1.png")
    row = {key: value for key, value in ({"prompt": "a"} | row).items() if value is not None}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row))
    (picture,) = PictureFolder.read(tmp_path).pictures
    assert (picture.prompt, picture.seed) == said


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"file_name": "gone.png"}], r"1 rows of metadata\.jsonl of no picture \(gone\.png\)"),
        ([{"file_name": "1.png"}], r"1 pictures without a row \(2\.png\)"),
        (
            [{"file_name": "1.png"}, {"file_name": "1.png", "prompt": "b"}],
            r"1 earlier rows .*last one counts",
        ),
        ([{"file_name": "1.png", "seed": -1}], r"1 seeds .*no whole number of 0 or more \(-1:1\)"),
        ([{"file_name": "1.png", "seed": 1.5}], r"\(1\.5:1\)"),
    ],
)
def test_what_a_manifest_says_in_vain_is_counted(tmp_path, rows, said):
    draw(tmp_path, "1.png", "2.png")
    (tmp_path / "metadata.jsonl").write_text(
        "".join(json.dumps({"prompt": "a"} | row) + "\n" for row in rows)
    )
    with pytest.warns(UserNotice, match=said):
        PictureFolder.read(tmp_path)
