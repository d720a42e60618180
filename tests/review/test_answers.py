"""Answers on the disk: whole after a crash, taken back, several reviewers at once."""

import threading

import pytest

from l2p.errors import UserError
from l2p.review.answers import Answer, Answers, Box, file_name

FIRST = Answer("0001", "a", "tie", [Box("b", 0.1, 0.2, 0.3, 0.4)])
SECOND = Answer("0002", "b", "b")


def test_what_was_said_is_read_back_by_another_process(tmp_path):
    Answers(tmp_path).add("Ann", FIRST)
    Answers(tmp_path).add("Ann", SECOND)
    assert Answers(tmp_path).all() == {"Ann": {"0001": FIRST, "0002": SECOND}}
    assert Answers(tmp_path).of("Bob") == {}


def test_undo_takes_back_the_last_and_a_new_answer_replaces(tmp_path):
    answers = Answers(tmp_path)
    answers.add("Ann", FIRST)
    answers.add("Ann", SECOND)
    assert answers.undo("Ann") == SECOND and list(answers.of("Ann")) == ["0001"]
    changed = Answer("0002", "tie", "a")
    answers.add("Ann", changed)
    assert answers.of("Ann")["0002"] == changed
    assert answers.undo("Ann") == changed and answers.undo("Ann") == FIRST and answers.undo("Ann") is None
    assert answers.all() == {}


@pytest.mark.parametrize("cut", [1, 10, 40])
def test_a_line_cut_short_by_a_crash_costs_only_itself(tmp_path, cut):
    answers = Answers(tmp_path)
    answers.add("Ann", FIRST)
    answers.add("Ann", SECOND)
    (path,) = tmp_path.glob("*.jsonl")
    path.write_bytes(path.read_bytes()[:-cut])
    assert answers.of("Ann") == ({"0001": FIRST, "0002": SECOND} if cut == 1 else {"0001": FIRST})
    third = Answer("0003", "a", "a")
    answers.add("Ann", third)
    assert answers.of("Ann")["0003"] == third and answers.of("Ann")["0001"] == FIRST


def test_reviewers_do_not_meet(tmp_path):
    answers = Answers(tmp_path)

    def judge(name):
        for k in range(20):
            answers.add(name, Answer(f"{k:04d}", "a", "b"))

    threads = [threading.Thread(target=judge, args=(name,)) for name in ("Ann", "ann", "Ännchen", "../../x")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = answers.all()
    assert set(found) == {"Ann", "ann", "Ännchen", "../../x"} and {len(v) for v in found.values()} == {20}
    assert all(path.parent == tmp_path for path in tmp_path.rglob("*.jsonl"))


def test_names():
    assert "/" not in file_name("../../etc/passwd") and file_name(" Ann ") == file_name("Ann")
    for name in ("", "   ", "x" * 81):
        with pytest.raises(UserError, match="1 to 80"):
            file_name(name)


@pytest.mark.parametrize(
    "line",
    [
        '{"pair": "0001"}',
        '{"pair": "0001", "follows": "c", "real": "a", "boxes": []}',
        '{"pair": "0001", "follows": "a", "real": "a", "boxes": [{"of": "a"}]}',
        '{"pair": ["0001"], "follows": "a", "real": "a", "boxes": []}',
    ],
)
def test_a_line_that_is_no_answer_is_named(tmp_path, line):
    answers = Answers(tmp_path)
    answers.add("Ann", FIRST)
    (path,) = tmp_path.glob("*.jsonl")
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(UserError, match="holds a line that is no answer"):
        answers.of("Ann")
