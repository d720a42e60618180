from __future__ import annotations

from l2p.names import prompt_names, unique


def test_prompts_that_differ_after_48_characters_get_names_of_their_own():
    start = "a red house by a lake under a very long evening sky with "
    one, other = ([name] for name in prompt_names([start + "swans", start + "ducks"], [7, 7]))
    assert one[0].removeprefix("0-") != other[0].removeprefix("1-")  # in two runs, too
    assert prompt_names([start + "swans"], [7])[0] == one[0].removeprefix("0-")
    assert len(prompt_names(["日" * 500], [2**62])[0].encode()) < 255


def test_names_are_in_the_order_of_the_prompts_and_say_the_seed():
    prompts = [prompt for prompt in ["a lake", "A lake!", "a lake"] for _ in range(2)]
    names = prompt_names(prompts, [3, 4] * 3)
    assert names == [f"{row}-a-lake-seed{seed}.png" for row in range(3) for seed in (3, 4)]
    assert prompt_names(["?"], [0]) == ["picture-seed0.png"]
    assert prompt_names(["a lake", "a lake"]) == ["0-a-lake.png", "1-a-lake.png"]


def test_numbered_names_take_nobodys_name():
    assert unique(["a.png", "A.png", "a-2.png", "a.png", "b.png"]) == [
        "a.png",
        "A-3.png",
        "a-2.png",
        "a-4.png",
        "b.png",
    ]
    composed, decomposed = "\u00e9.png", "e\u0301.png"  # one name on some disks
    assert len(set(unique([composed, decomposed]))) == 2 and "-2" in unique([composed, decomposed])[1]
