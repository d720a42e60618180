from __future__ import annotations

import pytest

from l2p.corpus.prompts import fingerprint, prompts_for
from l2p.errors import UserError
from l2p.landscapes import Scene, caption


def test_landscapes_prompts_are_captions_of_the_seeds_after_the_base():
    assert prompts_for("landscapes", [0, 3], seed=7) == [caption(Scene.from_seed(s)) for s in (7, 10)]


def test_lines_of_a_file_are_stripped_and_cycled(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\ufeffa barn\r\n\n  a lake  \nun été\n", encoding="utf-8")
    assert prompts_for(path, range(5)) == ["a barn", "a lake", "un été", "a barn", "a lake"]


def test_fingerprint_sees_a_changed_line(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("a barn\n")
    before = fingerprint(path)
    path.write_text("a barn\na lake\n")
    assert fingerprint(path) != before
    assert fingerprint("landscapes", 0) != fingerprint("landscapes", 1)


@pytest.mark.parametrize("content", [None, b"", b"\n \n", b"\xff\xfe\x00\xd8"])
def test_a_bad_file_is_one_clear_line(tmp_path, content):
    path = tmp_path / "prompts.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"prompts\.txt") as error:
        prompts_for(path, [0])
    assert "\n" not in str(error.value)


def test_a_folder_is_no_file_of_prompts(tmp_path):
    with pytest.raises(UserError, match="cannot read the prompts"):
        prompts_for(tmp_path, [0])
