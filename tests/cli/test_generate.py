"""`l2p generate`: pictures, their names, grids and JSON; and that nothing happens before everything is checked."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from l2p.picture_folder import PictureFolder
from l2p.runtime import return_free_memory


def test_pictures_in_a_folder_are_those_of_the_library(l2p, student_folder, tmp_path):
    import l2p as library

    out = tmp_path / "out"
    code, printed, err = l2p("generate", student_folder, "A red house!", "a lake", "--seed", 7, "--num-images", 2,
                             "--out", out, "--dtype", "fp32")  # fmt: skip
    assert code == 0 and err == ""
    names = ["0-a-red-house-seed7.png", "0-a-red-house-seed8.png", "1-a-lake-seed7.png", "1-a-lake-seed8.png"]
    assert sorted(file.name for file in out.iterdir()) == [*names, "metadata.jsonl"]
    assert [line.split()[0] for line in printed.splitlines()] == [str(out / name) for name in names]
    expected = library.load(student_folder, dtype="fp32").generate(
        ["A red house!", "a lake"], seeds=7, num_images=2
    )
    for name, picture in zip(names, expected, strict=True):
        assert np.array_equal(np.array(Image.open(out / name)), np.array(picture))


def test_one_file_of_another_size_as_json(l2p, student_folder, tmp_path):
    path = tmp_path / "new.folder" / "a.png"
    code, out, _ = l2p("generate", student_folder, "a lake", "--height", 40, "--width", 24, "--steps", 2, "--seed", 1,
                       "--out", path, "--json")  # fmt: skip
    (entry,) = json.loads(out)
    assert code == 0 and entry.pop("seconds") >= 0
    assert entry == {"path": str(path), "prompt": "a lake", "seed": 1, "height": 40, "width": 24}
    assert Image.open(path).size == (24, 40)


def test_a_grid_from_a_file_of_prompts_into_a_folder_that_is_there(l2p, student_folder, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a lake\n\n  a house \n")
    folder = tmp_path / "v1.0"
    folder.mkdir()
    code, out, _ = l2p("generate", student_folder, "--prompts-file", prompts, "--num-images", 3, "--seed", 0, "--grid",
                       "--json", "--out", folder)  # fmt: skip
    entries = json.loads(out)
    assert code == 0 and [file.name for file in folder.iterdir()] == ["grid.png"]
    assert [(e["prompt"], e["seed"]) for e in entries] == [
        (p, s) for p in ("a lake", "a house") for s in range(3)
    ]
    assert Image.open(folder / "grid.png").size == (3 * 48 + 4, 2 * 32 + 2)


def test_without_a_seed_it_is_drawn_and_told(l2p, student_folder, tmp_path):
    _, out, _ = l2p("generate", student_folder, "a lake", "--json", "--out", tmp_path / "a.png")
    (entry,) = json.loads(out)
    again = tmp_path / "b.png"
    assert l2p("generate", student_folder, "a lake", "--seed", entry["seed"], "--out", again)[0] == 0
    assert again.read_bytes() == (tmp_path / "a.png").read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--height", "0"], "--height is 0, expected a multiple of 8 from 8 to 8192: try 8"),
        (["--width", "100"], "--width is 100, .*: try 96"),
        (["--width", "80000"], "--width is 80000, .*: try 8192"),
        (["--height", "abc"], "--height is 'abc', expected a whole number"),
        (["--seed", "-1"], "--seed is -1, expected at least 0"),
        (["--num-images", "0"], "--num-images is 0, expected 1 to"),
        (["--steps", "0"], "--steps is 0, expected 1 to"),
        (["--prompts-file", "nowhere.txt"], "no such file or directory: nowhere.txt"),
        (["--out", "a.jpg"], "--out is a.jpg, expected a file that ends in .png, or a folder"),
        (["--out", "a.png", "--num-images", "2"], "--out is one file for 2 pictures"),
        (["--device", "gpu"], "device is 'gpu', expected"),
        (["--dtype", "int8"], "dtype is 'int8', expected"),
    ],
)
def test_a_wrong_option_is_one_line(l2p, student_folder, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = l2p("generate", student_folder, "a lake", *options)
    assert code == 2 and out == "" and re.match(f"l2p: {message}", err) and err.count("\n") == 1
    assert not list(tmp_path.rglob("*.png"))


def test_no_prompt_at_all(l2p, student_folder, tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    for options, said in (
        ([], "nothing to draw: give a prompt"),
        (["--prompts-file", tmp_path / "empty.txt"], f"{tmp_path}/empty.txt holds no prompt"),
    ):
        code, _, err = l2p("generate", student_folder, *options)
        assert code == 2 and err.startswith(f"l2p: {said}")


def test_a_prompts_file_is_read_like_every_other_list_of_prompts(l2p, student_folder, tmp_path):
    """A byte order mark or a CSV header never reaches a picture."""
    (tmp_path / "bom.txt").write_text("a lake\r\n", encoding="utf-8-sig")
    (tmp_path / "rows.jsonl").write_text('{"id": 1, "caption": "a lake"}\n')
    (tmp_path / "table.csv").write_text("words,seed\na lake,3\n")
    for number, name in enumerate(("bom.txt", "rows.jsonl", "table.csv#words")):
        options = ("--seed", 1, "--json", "--out", tmp_path / f"{number}.png")
        code, out, err = l2p("generate", student_folder, "--prompts-file", tmp_path / name, *options)
        assert code == 0, err
        assert [row["prompt"] for row in json.loads(out)] == ["a lake"]
    code, _, err = l2p("generate", student_folder, "--prompts-file", tmp_path / "table.csv")
    assert code == 2 and "has the columns words, seed: name one, such as table.csv#words" in err


def test_an_unwritable_place_is_told_before_anything_is_loaded(l2p, student_folder, tmp_path, monkeypatch):
    import l2p as library

    monkeypatch.setattr(library, "load", lambda *_, **__: pytest.fail("loaded"))
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "a.png"):
        code, _, err = l2p("generate", student_folder, "a lake", "--out", out)
        assert code == 2 and "cannot write to" in err and err.count("\n") == 1
    if os.geteuid():
        tmp_path.chmod(0o500)
        code, _, err = l2p("generate", student_folder, "a lake", "--out", tmp_path / "new")
        assert code == 2 and "permission denied" in err


def test_a_full_disk_leaves_no_half_picture(l2p, student_folder, tmp_path, monkeypatch):
    import errno

    def full(self, partial, **_):
        partial.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    code, _, err = l2p("generate", student_folder, "a lake", "--out", tmp_path)
    assert code == 2 and "no space left" in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_cut_off_weights_are_one_line(l2p, student_folder, tmp_path):
    import shutil

    broken = shutil.copytree(student_folder, tmp_path / "student")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    for argv in (["generate", broken, "a lake", "--out", tmp_path / "a.png"], ["info", broken]):
        code, out, err = l2p(*argv)
        assert code == 2 and out == "" and "model.safetensors" in err and err.count("\n") == 1
    assert not (tmp_path / "a.png").exists()


def test_out_of_memory_is_one_line_and_leaves_nothing(l2p, student_folder, tmp_path):
    """The address space of this very process is closed but for a little, and the allocator says no."""
    resource = pytest.importorskip("resource")
    status = Path("/proc/self/statm")
    if not status.is_file():
        pytest.skip("how much is in use is read from /proc")
    argv = ("generate", student_folder, "a lake", "--out", tmp_path / "a.png", "--seed", 1, "--dtype", "fp32")
    assert l2p(*argv)[0] == 0  # libraries have what they load late
    (tmp_path / "a.png").unlink()
    return_free_memory()  # which might be enough
    used = int(status.read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 60 * 2**20, limits[1]))
    try:
        code, _, err = l2p(*argv, "--height", 4096, "--width", 4096)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert code == 2 and err.startswith("l2p: out of memory") and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("large", [10**9, 1000])
def test_a_disk_that_fills_up_leaves_no_half_picture(l2p, student_folder, tmp_path, monkeypatch, large):
    """The system cuts the file off in the middle, be it written by Pillow or some rows at a time."""
    resource = pytest.importorskip("resource")
    monkeypatch.setattr("l2p.images.LARGE", large)
    argv = ("generate", student_folder, "a lake", "--height", 512, "--width", 512, "--seed", 1, "--out", tmp_path / "a.png")  # fmt: skip
    assert l2p(*argv)[0] == 0
    before = (tmp_path / "a.png").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        code, out, err = l2p(*argv)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 2 and out == "" and "file too large" in err.lower() and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == [tmp_path / "a.png"] and (tmp_path / "a.png").read_bytes() == before


LONG = "a red house by a lake under a very long evening sky with "  # more than a name holds


def test_prompts_that_begin_alike_keep_a_picture_each_in_one_run_and_in_two(l2p, student_folder, tmp_path):
    out = tmp_path / "out"
    code, text, err = l2p(
        "generate",
        student_folder,
        LONG + "swans",
        LONG + "ducks",
        LONG + "swans",
        "--seed",
        7,
        "--out",
        out,
        "--json",
    )
    assert code == 0, err
    paths = [row["path"] for row in json.loads(text)]
    assert len({path.lower() for path in paths}) == 3 == len(list(out.glob("*.png")))
    for end in ("swans", "ducks"):
        assert l2p("generate", student_folder, LONG + end, "--seed", 7, "--out", tmp_path / "two")[0] == 0
    assert len(list((tmp_path / "two").glob("*.png"))) == 2
    rows = {picture.path.name: (picture.prompt, picture.seed) for picture in PictureFolder.read(out).pictures}
    assert [rows[Path(path).name] for path in paths] == [
        (LONG + end, 7) for end in ("swans", "ducks", "swans")
    ]


def test_pictures_that_are_there_are_kept_unless_they_may_be_replaced(l2p, student_folder, tmp_path):
    command = ("generate", student_folder, "a lake", "--seed", 7, "--out", tmp_path)
    assert l2p(*command)[0] == 0
    before = (tmp_path / "a-lake-seed7.png").read_bytes()
    code, out, err = l2p(*command, "--height", 64)
    assert (
        code == 2
        and out == ""
        and "a-lake-seed7.png is there already: choose another --out, or --overwrite" in err
    )
    assert (tmp_path / "a-lake-seed7.png").read_bytes() == before
    assert l2p(*command, "--height", 64, "--overwrite")[0] == 0
    assert (tmp_path / "a-lake-seed7.png").read_bytes() != before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["typo.txt"], r"no such file or directory: typo\.txt \(--prompt 'typo\.txt' draws these words\)"),
        (["./pictures"], r"no such file or directory: \./pictures"),
        (["here/b"], r"no such file or directory: here/b"),
        (["prompts.txt"], r"prompts\.txt is a file: --prompts-file prompts\.txt draws the prompts in it"),
        (["list"], r"list is a file: --prompts-file list"),
    ],
)
def test_a_path_is_never_drawn(l2p, student_folder, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    for name in ("prompts.txt", "list"):
        (tmp_path / name).write_text("a lake\n")
    code, out, err = l2p("generate", student_folder, *words)
    assert code == 2 and out == "" and re.search(said, err) and err.count("\n") == 1
    assert not list(tmp_path.rglob("*.png"))


def test_words_that_look_like_a_path_are_drawn_where_they_are_named_a_prompt(l2p, student_folder, tmp_path):
    assert l2p("generate", student_folder, "--prompt", "typo.txt", "--seed", 1, "--out", tmp_path)[0] == 0
    assert (tmp_path / "typo-txt-seed1.png").is_file()


@pytest.mark.parametrize("student", ["runs/typo", "here/typo", "here/typo.safetensors", "./typo"])
def test_a_mistyped_folder_is_not_sought_on_the_hub(l2p, tmp_path, monkeypatch, student):
    import huggingface_hub

    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the Hub"))
    for verb in (
        ["generate", student, "a lake"],
        ["info", student],
        ["evaluate", student],
        ["review", student, "--against", student],
    ):
        code, out, err = l2p(*verb)
        assert code == 2 and out == "" and f"no such file or directory: {student}" in err, err
