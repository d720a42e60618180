from __future__ import annotations

import itertools

import pytest

from l2p.corpus.filters import Filters, Report, jaccard, shingles_of
from l2p.corpus.prompts import prompts_for
from l2p.errors import UserError
from l2p.recipe import PromptFilters


def sort(prompts, **config):
    report = Report()
    report.sort(prompts, Filters(PromptFilters(**config)))
    return report


@pytest.mark.parametrize(
    ("prompt", "reason", "detail"),
    [
        ("a barn at www.example.org in snow", "format", "holds an address of the web: www."),
        ("a {colour} barn by a lake", "format", "holds a slot that nobody filled: {colour}"),
        ("a barn [insert place] by a lake", "format", "holds a slot that nobody filled: [insert place]"),
        ("a barn <lora:x> by a lake", "format", "holds a slot that nobody filled: <lora:x>"),
        ("a bell\x07 by a lake", "format", "holds a control character"),
        ("1girl, 2.5, (((:1.3)))", "format", "6 of 22 characters are letters"),
        ("so coooooooooooool a barn", "format", "repeats one character: oooooooooooo"),
        ("a barn", "length", "2 words"),
        ("word " * 21, "length", "21 words"),
        ("the NSFW barn by a lake", "blocked term", "nsfw"),
        ("a Red  Light by a lake", "blocked term", "red light"),
    ],
)
def test_each_filter_drops_what_it_is_for(prompt, reason, detail):
    report = sort([prompt], max_words=20, blocked_terms=["nsfw", "Red Light", "bar"], near_duplicates=1)
    assert report.kept == [] and report.dropped[0]["reason"] == reason
    assert detail in report.dropped[0]["detail"]


def test_good_prompts_stay_and_white_space_is_tidied():
    good = [
        "a barn  by\na lake",
        "ein Haus am See, früh am Morgen",
        "山の湖のほとり に ある 家",
        "a 35mm photo, f/1.8, of a café",
    ]
    report = sort(good, blocked_terms=["bar", "lak"])  # parts of words are no terms
    assert report.kept == ["a barn by a lake", *good[1:]] and report.dropped == []


def test_blocked_terms_from_a_file(tmp_path):
    path = tmp_path / "terms.txt"
    path.write_text("\ufeffbarn\n\n")
    assert sort(["a barn by a lake"], blocked_file=str(path)).dropped[0]["detail"] == "barn"
    with pytest.raises(
        UserError, match=r"corpus\.filters\.blocked_file: cannot read .*nowhere\.txt: no such file"
    ):
        sort([], blocked_file=str(tmp_path / "nowhere.txt"))


def test_the_same_words_are_a_duplicate_whatever_case_and_punctuation():
    report = sort(["A barn, by a lake!", "a barn by a lake", "a lake by a barn"], near_duplicates=1)
    assert report.kept == ["A barn, by a lake!", "a lake by a barn"]
    assert report.dropped == [
        {"prompt": "a barn by a lake", "reason": "duplicate", "detail": "A barn, by a lake!"}
    ]


def test_near_duplicates_are_those_of_an_exhaustive_comparison():
    """MinHash only finds candidates: what is dropped must be what comparing every pair would drop."""
    pytest.importorskip("datasketch")
    prompts = list(dict.fromkeys(prompts_for("landscapes", range(150))))
    prompts += [f"{p} today" for p in prompts[::5]] + [p.replace("a ", "one ") for p in prompts[::7]]
    kept: list[str] = []
    for prompt in prompts:
        bare = prompt.replace(",", "")
        if all(jaccard(shingles_of(bare), shingles_of(k.replace(",", ""))) < 0.8 for k in kept):
            kept.append(prompt)
    assert 20 < len(prompts) - len(kept) < len(prompts) / 2
    assert sort(prompts, near_duplicates=0.8, min_words=1).kept == kept


def test_jaccard_of_shingles_by_hand():
    assert shingles_of("abcdefg") == {"abcde", "bcdef", "cdefg"} and shingles_of("ab") == {"ab"}
    assert jaccard(shingles_of("abcdefg"), shingles_of("abcdefgh")) == 3 / 4


def test_another_language_is_dropped_and_doubt_is_not():
    pytest.importorskip("py3langid")
    foreign = [
        "ein altes Bauernhaus an einem stillen See zwischen den Bergen",
        "une vieille maison au bord du lac",
    ]
    report = sort([*foreign, *prompts_for("taxonomy", range(60))], language="en", near_duplicates=1)
    assert [row["prompt"] for row in report.dropped if row["reason"] == "language"] == foreign
    assert report.dropped[0]["detail"].startswith("de (")
    with pytest.raises(UserError, match="corpus.filters.language is 'english', expected one of"):
        sort([], language="english")


def test_the_report_counts_by_reason_and_shows_a_few(monkeypatch):
    numbers = itertools.count()
    report = sort(["tiny", *(f"barn {next(numbers)} by a {'lake' * 3}" for _ in range(9)), "a barn http://x"] * 2, near_duplicates=1)  # fmt: skip
    summary = report.summary()
    assert summary["kept"] == 9
    assert {reason: found["count"] for reason, found in summary["dropped"].items()} == {"format": 2, "length": 2, "duplicate": 9}  # fmt: skip
    assert len(summary["dropped"]["duplicate"]["examples"]) == 5
    assert sum(found["count"] for found in summary["dropped"].values()) == len(report.dropped)


@pytest.mark.parametrize(("package", "config"), [("datasketch", {}), ("py3langid", {"language": "en"})])
def test_a_missing_package_is_one_clear_line(monkeypatch, package, config):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(UserError, match=f"needs {package}: pip install"):
        sort(["a"], **config)
