"""Every key of a recipe and every number of the command line meets odd values: a line or a plan, never a traceback."""

from __future__ import annotations

import random
from dataclasses import asdict
from pathlib import Path

import pytest

from l2p.errors import UserError
from l2p.recipe import Recipe, load_recipe
from l2p.training import distill
from l2p.training.run_folder import flatten
from l2p.yaml_file import LARGEST

BASE = Path()  # a short recipe: reading a long one is what would take the time
RECIPES = Path(__file__).parents[1] / "recipes"
ODD = (
    "null", "true", "no", "-1", "0", "1", "1.5", "33", "1e9", "1e400", "-1e400", ".nan", ".inf", "-.inf", "''", "' '",
    "abc", "/dev/zero", "..", "[]", "[1]", "[[1]]", "[null]", "{}", "{a: 1}", "{weight: 1}", "{first: -1}", "???",
    "'???'", "${seed}", "${corpus}", "${nope}", "${", "${a: ${b}}", "!!binary aGk=", "!!set {a}", "!!omap [a: 1]",
    "!!python/object:os.system {}", "2001-01-01", "12:30:45", "99999999999999999999", "0x10", "1_000", '"\\0"',
    '"\\e[31m"', "é", "x" * 5000, "1" * 5000, "&a [*a]", "*x", "[" * 200, "=", "<<", "{<<: {a: 1}}", "[???]", "|",
)  # fmt: skip
KEYS = (
    *flatten(asdict(load_recipe(RECIPES / "quickstart.yaml"))),
    *(
        "corpus.llm",
        "corpus.filters",
        "corpus.quality",
        "student.lora",
        "student.train_blocks",
        "extends",
        "nope",
    ),
    *(
        "match.objectives",
        "match.objectives.drift",
        "transfer.objectives.flow.shift",
        "transfer",
        "student",
        "lift",
    ),
)


@pytest.fixture(scope="module", autouse=True)
def base(tmp_path_factory):
    global BASE
    BASE = tmp_path_factory.mktemp("fuzz") / "base.yaml"
    BASE.write_text("name: x\nmatch: {objectives: {pairs: {weight: 1}, drift: {weight: 1}}}\n")


def attempt(override: str) -> str | None:
    """The line with which a recipe is refused; None where it is taken."""
    try:
        recipe = load_recipe(BASE, [override])
        distill.check_stages(recipe)
    except UserError as error:
        return str(error)
    return None


def check(override: str) -> None:
    line = attempt(override)
    if line is not None:
        assert 10 < len(line) < 1000 and line.isprintable(), override[:80]


def test_a_sample_of_odd_values_in_every_key():
    draw = random.Random(16)
    for key in KEYS:
        for value in draw.sample(ODD, 2):
            check(f"{key}={value}")


@pytest.mark.slow
def test_every_odd_value_in_every_key():
    for key in KEYS:
        for value in ODD:
            check(f"{key}={value}")


@pytest.mark.parametrize("value", ODD)
def test_odd_values_of_objectives_and_numbers(value):
    for key in (
        "match.objectives",
        "match.objectives.drift.temperatures",
        "one_step.learning_rate",
        "student.head",
    ):
        check(f"{key}={value}")


BOMB = "a: &a [1,1,1,1,1,1,1,1]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 8)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "more than 20000 values"),
        ("name: &a [*a]\n", "an alias that holds itself"),
        ("name: " + "[" * 5000 + "]" * 5000, "nested deeper than 24 levels"),
        ("name: x\n" + "a" * LARGEST, "is larger than 256 KiB"),
        ("name: x\nextends: /dev/zero\n", "/dev/zero is no regular file"),
        ("name: x\nextends: [a]\n", "extends is .'a'., expected the path"),
        ('name: x\nextends: "a\\0b"\n', "expected the path of a recipe"),
        ("name: x\nstudent: !!binary aGk=\n", ":2: broken YAML: a value of the kind binary"),
        ("name: x\n? [a]\n: 1\n", "a key that is no text"),
        ("name: x\n1: 2\n", "a key 1 that is no text"),
        ("name: x\nseed: ???\n", ":2: seed is missing"),
        ("name: " + "${seed}" * 30, "more than 24 references"),
        ("name: ${output_dir}\n", "leads back to itself|Recursive|recursion|circular"),
        ("name: x\nmatch: {objectives: [drift]}\n", ":2: match.objectives is .'drift'., expected a section"),
        ("name: x\nmatch: {objectives: {drift: {temperatures: [0]}}}\n", r":2: .*temperatures\[0\] is 0"),
        ("name: x\nmatch: {objectives: {drift: {weight: -1}}}\n", ":2: match.objectives.drift.weight is -1"),
        ("name: x\nmatch: {objectives: {drift: {weight: 1" + "0" * 5000 + "}}}\n", "broken YAML|expected"),
        ("name: x\x00\n", "broken YAML"),
        ("name: 'x\n", "broken YAML"),
        ("name: x\nseed: 08\nlift: {num_images: 9, num_images: 9}\n", "found duplicate key num_images"),
        ("%TAG ! tag:x,2000:\n--- \nname: x\n--- \nname: y\n", "broken YAML"),
    ],
)
def test_a_broken_or_hostile_file_is_one_line(tmp_path, text, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        load_recipe(path)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 1000


def test_truncated_and_spliced_texts(tmp_path):
    """Pieces of a real recipe, cut anywhere: read, or refused in a line."""
    draw, path = random.Random(3), tmp_path / "recipe.yaml"
    text = (RECIPES / "quickstart.yaml").read_text()
    for _ in range(12):
        a, b = sorted(draw.sample(range(len(text)), 2))
        path.write_text(draw.choice([text[:a], text[a:b], text[:a] + text[b:], text[:a] + "\t{[" + text[a:]]))
        try:
            assert isinstance(load_recipe(path), Recipe)
        except UserError as error:
            assert str(error).isprintable()


ODD_NUMBERS = (
    "-1",
    "0",
    "nan",
    "inf",
    "-inf",
    "1e400",
    "abc",
    "",
    " ",
    "9" * 40,
    "1.5",
    "٣",
    "0x10",
    "None",
    "1;2",
)
COMMANDS = {
    "generate": (("landscapes-128", "a lake"), ("height", "width", "steps", "seed", "num-images", "guidance-scale")),
    "decode": (("x.png",), ("height", "width", "steps", "seed", "sigma", "stop-at-sigma", "threads", "guidance-scale",
                            "teacher-steps", "scale")),
    "bench": ((), ("rounds", "warm-up", "batch", "teacher-steps", "student-steps", "time-limit", "threads", "sizes",
                   "paths", "preset")),
    "evaluate": ((".",), ("num-images", "paths")),
    "evaluate-decoder": ((), ("num-images", "steps", "sigmas", "stop-images", "teacher-steps", "threads")),
    "review": ((".",), ("port", "num-images")),
    "demo": ((".",), ("port",)),
    "plan": (("quickstart",), ("gpus", "vram")),
    "ablate": (("nowhere.yaml",), ("seeds",)),
}  # fmt: skip
CASES = [(verb, option) for verb, (_, options) in COMMANDS.items() for option in options]


@pytest.mark.parametrize(("verb", "option"), CASES, ids="-".join)
def test_an_odd_number_is_parsed_or_refused_in_a_line(verb, option):
    """Parsing alone, which is all that these values need to be refused."""
    import argparse
    from importlib import import_module

    from l2p.cli.main import Parser

    module, parser = import_module(f"l2p.cli.{verb.replace('-', '_')}"), Parser(prog=f"l2p {verb}")
    module.configure(parser)
    for value in ODD_NUMBERS:
        try:
            args = parser.parse_intermixed_args([*COMMANDS[verb][0], f"--{option}={value}"])
        except UserError as error:
            assert str(error).isprintable() and len(str(error)) < 400
        else:
            assert isinstance(args, argparse.Namespace)
            found = getattr(args, option.replace("-", "_"))
            assert found == found and found not in (float("inf"), -float("inf")), value


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["bench", "--threads", "-1"], "--threads is -1, expected 1 to 4096"),
        (["bench", "--time-limit", "nan"], "--time-limit is nan, expected a finite number"),
        (["decode", "x.png", "--height", "0"], "--height is 0, expected a multiple of 8"),
        (["decode", ""], "INPUT is '', expected some text"),
        (["generate", "landscapes-128", ""], "PROMPT is '', expected some text"),
        (["generate", "landscapes-128", "a", "--guidance-scale", "nan"], "--guidance-scale is nan"),
        (["generate", "landscapes-128", "\udce9t\udce9"], "is no UTF-8"),
        (["plan", "quickstart", "--gpus", "0"], "--gpus is 0"),
        (["synthesize", "quickstart", "corpus.prompts=/nowhere.txt", "--prompts-only"], "/nowhere.txt"),
    ],
)
def test_nonsense_does_not_exit_with_0(capsys, tmp_path, monkeypatch, argv, message):
    from l2p.cli.main import main

    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1 and list(tmp_path.iterdir()) == []
