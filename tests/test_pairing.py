"""Pairs by what folders say and by names; prompts by natural order or a refusal with both counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from l2p.corpus.prompts import prompts_of
from l2p.errors import UserError
from l2p.pairing import assign_texts, pair_folders
from l2p.picture_folder import Picture, PictureFolder, natural_key


def folder(name, names, said=None):
    """said: name -> (prompt, seed)."""
    listed = sorted(names, key=natural_key)
    pictures = [Picture(Path(name, n), *(said or {}).get(n, (None, None))) for n in listed]
    return PictureFolder(Path(name), pictures, has_manifest=bool(said))


def pairs(a, b):
    return [(x.path.name, y.path.name) for x, y in pair_folders(a, b).pairs]


NUMBERS = [f"{n}.png" for n in range(1, 13)]
TEXTS = [f"prompt {n}" for n in range(1, 13)]


def test_equal_stems_are_pairs_in_natural_order():
    a, b = folder("a", NUMBERS), folder("b", [f"{n}.jpg" for n in range(1, 13)])
    assert pairs(a, b) == [(f"{n}.png", f"{n}.jpg") for n in range(1, 13)]
    assert pair_folders(a, b).line() is None


def test_a_missing_picture_costs_its_own_pair_alone():
    found = pair_folders(folder("a", NUMBERS), folder("b", [n for n in NUMBERS if n != "5.png"]))
    assert [x.path.name for x, _ in found.pairs] == [n for n in NUMBERS if n != "5.png"]
    assert found.line() == "11 pairs; without a partner: 5.png in a"


def test_equal_stems_with_two_suffixes_are_paired_by_whole_names():
    a, b = folder("a", ["x.png", "x.jpg"]), folder("b", ["x.jpg", "x.webp"])
    assert pairs(a, b) == [("x.jpg", "x.jpg")]


def test_a_number_is_no_name_where_one_folder_knows_what_it_shows():
    said = {n: (f"prompt of {n}", 3) for n in NUMBERS}
    found = pair_folders(folder("a", NUMBERS, said), folder("b", NUMBERS))
    assert not found.pairs and "equal numbers are no pair: b does not say" in found.line()
    slugs = ["0-a-lake-seed3.png", "1-a-barn-seed3.png"]
    assert len(pairs(folder("a", slugs, {n: ("x", 3) for n in slugs[:1]}), folder("b", slugs))) == 2


def test_where_both_folders_say_it_prompt_and_seed_decide():
    a = folder(
        "a", ["0.png", "1.png", "2.png"], {"0.png": ("lake", 1), "1.png": ("barn", 1), "2.png": ("hill", 1)}
    )
    b = folder(
        "b", ["0.png", "1.png", "2.png"], {"0.png": ("barn", 1), "1.png": ("lake", 1), "2.png": ("hill", 2)}
    )
    assert pairs(a, b) == [("0.png", "1.png"), ("1.png", "0.png")]
    unseeded = folder("b", ["0.png", "1.png"], {"0.png": ("barn", None), "1.png": ("hill", None)})
    assert pairs(a, unseeded) == [("1.png", "0.png"), ("2.png", "1.png")]


def test_prompts_are_counted_off_in_natural_order():
    a = folder("a", NUMBERS)
    found = assign_texts(TEXTS, "p.txt", pair_folders(a, a))
    assert [found[Path("a", name)] for name in NUMBERS] == TEXTS


@pytest.mark.parametrize("count", [11, 13, 24])
def test_another_number_of_prompts_is_refused_with_both_counts(count):
    pairing = pair_folders(folder("a", NUMBERS), folder("b", NUMBERS[:7]))
    with pytest.raises(
        UserError, match=f"holds {count} prompts for 12 pictures in a and 7 pictures in b"
    ) as error:
        assign_texts([f"t{n}" for n in range(count)], "p.txt", pairing)
    assert ("is its first line, 't0', a header?" in str(error.value)) == (count == 13)


@pytest.mark.parametrize("short", ["a", "b"])
def test_a_pair_has_the_prompt_of_its_picture_and_not_of_its_place(short):
    """Number 3 is missing on one side: pairs 3 to 11 would each get the prompt before."""
    full, less = NUMBERS, [n for n in NUMBERS if n != "3.png"]
    a, b = folder("a", less if short == "a" else full), folder("b", less if short == "b" else full)
    pairing = pair_folders(a, b)
    found = assign_texts(TEXTS, "p.txt", pairing)
    for one, other in pairing.pairs:
        assert found[one.path] == found[other.path] == f"prompt {one.path.stem}"


def test_a_list_that_fits_both_folders_and_differs_is_refused():
    a, b = folder("a", ["1.png", "2.png", "4.png"]), folder("b", ["1.png", "3.png", "4.png"])
    pairing = pair_folders(a, b)
    assert assign_texts(["x", "y", "z"], "p", pairing)[Path("a/4.png")] == "z"
    b = folder("b", ["0.png", "1.png", "2.png"])
    with pytest.raises(UserError, match="fits both folders, and they differ: a/1.png would show 'x'"):
        assign_texts(["x", "y", "z"], "p", pair_folders(folder("a", ["1.png", "2.png", "4.png"]), b))


def test_prompts_that_a_manifest_denies_are_refused():
    a = folder("a", ["1.png", "2.png"], {"1.png": ("lake", 0), "2.png": ("barn", 0)})
    with pytest.raises(UserError, match="gives a/1.png the prompt 'barn', its folder says 'lake'"):
        assign_texts(["barn", "lake"], "p.txt", pair_folders(a, a))


def test_prompts_by_file_name(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("file_name,prompt\n2.png,two\n10,ten\n1.png,one\n")
    a = folder("a", ["1.png", "2.png", "10.png"])
    found = prompts_of(path, pair_folders(a, a))
    assert [found[picture.path] for picture in a.pictures] == ["one", "two", "ten"]
    path.write_text("file_name,prompt\n2.png,two\n")
    with pytest.raises(UserError, match=r"has no prompt for 1\.png, 10\.png in a"):
        prompts_of(path, pair_folders(a, a))


def test_a_blank_line_shifts_nothing(tmp_path):
    path = tmp_path / "p.txt"
    path.write_text("one\n\ntwo\nthree\n")
    a = folder("a", ["1.png", "2.png", "3.png"])
    with pytest.raises(UserError, match=r"p\.txt:2 is blank"):
        prompts_of(path, pair_folders(a, a))


def test_scenes_are_not_counted_off_over_a_gap():
    gap = folder("a", [f"{n:03d}.png" for n in (500, 501, 503)])
    with pytest.raises(UserError, match="has no picture number 502"):
        prompts_of("landscapes", pair_folders(gap, gap))
    whole = folder("a", [f"{n:03d}.png" for n in (500, 501, 502)])
    assert len(prompts_of("landscapes", pair_folders(whole, whole))) == 3
