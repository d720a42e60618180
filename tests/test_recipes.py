"""Recipes: the shipped ones load, and every mistake is one line that names file, line, key and what was meant."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
import yaml

from l2p.errors import UserError
from l2p.recipe import Recipe, StageConfig, TrainBlocks, load_recipe

RECIPES = Path(__file__).parents[1] / "recipes"


def schema_of(name: str) -> type:
    if name.startswith("teacher"):
        from l2p.training.teacher import TeacherRecipe

        return TeacherRecipe
    if name.startswith("head"):
        from l2p.training.head import HeadRecipe

        return HeadRecipe
    if name in ("landscapes-512", "z-image-4k"):
        from l2p.training.grow import GrowRecipe

        return GrowRecipe
    if name.startswith("pid"):
        from l2p.training.pid import PidRecipe

        return PidRecipe
    if name.startswith("judge"):
        from l2p.training.judge import JudgeRecipe

        return JudgeRecipe
    if name.startswith("ablation"):
        from l2p.training.ablation import AblationRecipe

        return AblationRecipe
    return Recipe


@pytest.fixture
def write(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return path

    return write


def leaves(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict) and key not in ("objectives", "train_blocks"):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def all_keys(config, prefix=""):
    for item in fields(config):
        value = getattr(config, item.name)
        nested = is_dataclass(value) and not isinstance(value, TrainBlocks)
        yield from all_keys(value, f"{prefix}{item.name}.") if nested else [f"{prefix}{item.name}"]


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_shipped_recipe_loads_and_its_header_says_how_to_run_it(path):
    recipe = load_recipe(path, schema=schema_of(path.stem))
    assert recipe.output_dir == f"runs/{recipe.name}"
    header = re.match(r"(#.*\n)+", path.read_text())[0]
    verbs = {
        "teacher": "train-",
        "head": "train-",
        "judge": "train-",
        "landscapes-512": "grow",
        "z-image-4k": "grow",
        "ablation": "ablate",
        "corpus": "synthesize",
        "pid": "train-pid",
    }
    verb = verbs.get(path.stem, verbs.get(path.stem.split("-")[0], "distill"))
    assert f"l2p {verb}" in header
    assert f"recipes/{path.name}" in header and "ost" in header  # a command, and what it costs


@pytest.mark.parametrize("name", ["quickstart", "landscapes-best", "z-image-turbo-1k"])
def test_a_distillation_recipe_shows_every_knob_and_its_objectives_are_right(name):
    from l2p.objectives import check_objectives

    path = RECIPES / f"{name}.yaml"
    recipe = load_recipe(path)
    assert set(all_keys(recipe)) - set(leaves(yaml.safe_load(path.read_text()))) == set()
    for stage in (recipe.transfer, recipe.one_step, recipe.match):
        assert check_objectives(stage.objectives)


def test_every_knob_of_the_quickstart_is_explained():
    text = (RECIPES / "quickstart.yaml").read_text()
    explained = set(re.findall(r"^\s*([a-z_0-9]+):[^#\n]*#", text, re.MULTILINE))
    said_by_name = {
        "name",
        "output_dir",
        "width",
        "enabled",
        "steps",
        "objectives",
        "weight",
        "flow",
        "wandb_project",
    }
    assert {
        key.split(".")[-1] for key in all_keys(load_recipe(RECIPES / "quickstart.yaml"))
    } - explained <= said_by_name


def test_values_types_and_interpolation(write):
    recipe = load_recipe(
        write(
            "name: x\nthreads: 2\none_step: {learning_rate: 1e-4, objectives: {pairs: {weight: 2, pixel: 1e-1}}}\n"
        ),
        [
            "one_step.objectives.pairs.latent=0.5",
            "match.enabled=false",
            "seed=3",
            "output_dir=out/${name}-${seed}",
        ],
    )
    assert recipe.output_dir == "out/x-3" and recipe.threads == 2
    assert isinstance(recipe.one_step, StageConfig) and recipe.one_step.learning_rate == 1e-4
    assert recipe.one_step.objectives == {"pairs": {"weight": 2, "pixel": 0.1, "latent": 0.5}}
    assert not recipe.match.enabled and type(recipe.one_step.objectives["pairs"]) is dict
    assert recipe.corpus == Recipe().corpus


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("all", "all"),
        ("none", "none"),
        ("{first: 5, last: 4}", TrainBlocks(5, 4)),
        ("{last: 2}", TrainBlocks(0, 2)),
    ],
)
def test_train_blocks(write, text, expected):
    assert load_recipe(write(f"name: x\nstudent:\n  train_blocks: {text}\n")).student.train_blocks == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "name: x\none_step:\n  learning_rat: 1\n",
            ":3: unknown key one_step.learning_rat: did you mean one_step.learning_rate?",
        ),
        ("name: x\nqqq: 1\n", ":2: unknown key qqq: expected one of name, output_dir"),
        ("name: x\nseed: abc\n", ":2: seed is 'abc', expected a whole number"),
        ("name: x\none_step:\n  steps: 1.5\n", ":3: one_step.steps is 1.5, expected a whole number"),
        ("name: x\none_step:\n  optimizer: sgd\n", ":3: one_step.optimizer is 'sgd', expected muon or adamw"),
        ("name: x\nmatch: 3\n", ":2: match is 3, expected a section with the keys enabled, steps"),
        ("name: x\nmatch:\n", ":2: match is None, expected a section"),
        ("name: x\nmatch: {objectives: [drift]}\n", ":2: match.objectives is .'drift'., expected a section"),
        (
            "name: x\nmatch:\n  objectives:\n    drift: 1\n",
            ":4: match.objectives.drift is 1, expected a section with the keys weight",
        ),
        ("name: x\nseed: -1\n", ":2: seed is -1, expected at least 0"),
        ("name: x\none_step: {ema_decay: 1}\n", ":2: one_step.ema_decay is 1, expected 0 to 0.99999"),
        (
            "name: x\none_step: {learning_rate: .nan}\n",
            ":2: one_step.learning_rate is nan, expected a finite number",
        ),
        (
            "name: x\nstudent: {train_blocks: some}\n",
            ":2: student.train_blocks is 'some', expected all, none or",
        ),
        (
            "name: x\nstudent: {train_blocks: {frist: 5}}\n",
            ":2: unknown key student.train_blocks.frist: did you mean student.train_blocks.first",
        ),
        ("name: x\nstudent: {train_blocks: {first: -5}}\n", ":2: student.train_blocks is {'first': -5}"),
        ("name: x\noutput_dir: ${nam}\n", ":2: output_dir: Interpolation key 'nam' not found"),
        ("name: [x\nseed: 1\n", ":2: broken YAML: "),
        ("name: x\n\tseed: 1\n", ":2: broken YAML: "),
        ("name: x\nname: y\n", ":2: broken YAML: found duplicate key name"),
        ("name: ${x\n", r":1: name is '\$\{x': "),
        ("seed: 1\n", ": name is missing"),
        ("", " is empty"),
        ("# only a comment\n", " is empty"),
        ("- name\n- x\n", " holds a list, expected keys and values"),
        ("quickstart\n", ": unknown key quickstart"),
    ],
)
def test_a_mistake_in_the_file(write, text, message):
    path = write(text)
    with pytest.raises(UserError, match=f"^{re.escape(str(path))}{message}") as caught:
        load_recipe(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("one_step.step=3", "unknown key one_step.step: did you mean one_step.steps?"),
        ("seed", "is not understood, expected key=value"),
        ("=3", "is not understood, expected key=value"),
        ("one_step..steps=3", "is not understood, expected key=value"),
        ("seed=abc", "'abc'"),
        ("seed=", "seed is None, expected a whole number"),
        ("seed.x=1", "seed is {'x': 1}, expected a whole number"),
        ("name=[x", "has a value that is no YAML"),
    ],
)
def test_a_mistake_in_an_override(write, override, message):
    with pytest.raises(
        UserError, match=f"^override {re.escape(repr(override))}.*{re.escape(message)}"
    ) as caught:
        load_recipe(write("name: x\n"), [override])
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_no_text(tmp_path):
    (tmp_path / "quickstart.yaml").write_text("name: x\n")
    with pytest.raises(UserError, match="quickstar.yaml does not exist; did you mean .*/quickstart.yaml?"):
        load_recipe(tmp_path / "quickstar.yaml")
    with pytest.raises(UserError, match="is a folder, expected a YAML file"):
        load_recipe(tmp_path)
    (tmp_path / "weights.yaml").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(UserError, match="is not a text file"):
        load_recipe(tmp_path / "weights.yaml")
    with pytest.raises(UserError, match="does not exist"):
        load_recipe(tmp_path / "quickstart.yaml" / "x.yaml")


PUBLISHED = {  # parameters of the student in billions, and the share of them that trains
    "z-image-turbo-1k": (6.17, 0.41),
    "flux1-dev-1k": (11.9, 0.2),
    "flux2-klein-1k": (3.90, 0.53),
    "qwen-image-1k": (20.4, 0.01),
    "sd3.5-1k": (2.25, 1.0),
    "sdxl-1k": (0.61, 1.0),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_fits_its_teacher_at_its_published_size(name):
    """On the meta device: every shape of the student is made, no weights are."""
    from l2p.objectives import check_objectives
    from l2p.students.build import published_student
    from l2p.training import distill

    recipe = load_recipe(RECIPES / f"{name}.yaml", [])
    if recipe.student.lora is not None:
        pytest.importorskip("peft")
    distill.check(recipe)
    for stage in (recipe.transfer, recipe.one_step, recipe.match):
        assert check_objectives(stage.objectives)
    size = (recipe.teacher.height, recipe.teacher.width)
    student = published_student(recipe.teacher.path, recipe.student, size)
    billions, share = PUBLISHED[name]
    sizes = [(p.numel(), p.requires_grad) for p in student.parameters()]
    parameters = sum(count for count, _ in sizes)
    assert parameters / 1e9 == pytest.approx(billions, rel=0.03)
    assert sum(count for count, trains in sizes if trains) / parameters == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_real_model_s_recipe_says_how_to_try_it(name):
    header = re.match(r"(#.*\n)+", (RECIPES / f"{name}.yaml").read_text())[0]
    for command in (f"{name}.yaml --tiny", f"{name}.yaml --dry-run", f"l2p generate runs/{name}/student"):
        assert command in header
    assert "GB" in header and "not measured" in header and "icence" in header


def test_the_4k_recipe_grows_the_published_student():
    """Z-Image's real sizes at patch 64, on the meta device: the core's grid and nearly its parameters stay."""
    import torch

    from l2p.students.build import published_spec
    from l2p.students.grow import grown_spec
    from l2p.students.heads import DETAIL
    from l2p.students.student import PixelStudent
    from l2p.training.grow_data import check_sizes

    small, recipe = load_recipe(RECIPES / "z-image-turbo-1k.yaml"), load_recipe(RECIPES / "z-image-4k.yaml", schema=schema_of("z-image-4k"))  # fmt: skip
    assert recipe.student == f"{small.output_dir}/student" and recipe.teacher == small.teacher.path
    spec = published_spec(recipe.teacher, small.student, (small.teacher.height, small.teacher.width))
    grown = grown_spec(spec, recipe.factor, {knob: getattr(recipe.head, knob) for knob in DETAIL})
    assert (grown.patch_size, grown.height, grown.width) == (64, *check_sizes(recipe.pictures.sizes)[0])
    assert all(height % 64 == width % 64 == 0 for height, width in recipe.pictures.sizes)
    with torch.device("meta"):
        student = PixelStudent(grown)
    assert sum(p.numel() for p in student.parameters()) / 1e9 == pytest.approx(6.27, abs=0.02)


def test_a_recipe_extends_another(write, tmp_path):
    (tmp_path / "base.yaml").write_text(
        "name: base\nseed: 3\none_step: {steps: 7, objectives: {pairs: {weight: 2}}}\n"
    )
    recipe = load_recipe(write("extends: base.yaml\nname: mine\none_step: {batch_size: 5}\n"), ["seed=4"])
    assert (recipe.name, recipe.seed, recipe.one_step.steps, recipe.one_step.batch_size) == ("mine", 4, 7, 5)
    assert recipe.output_dir == "runs/mine" and recipe.one_step.objectives == {"pairs": {"weight": 2}}


def test_mistakes_where_a_recipe_extends_another(write, tmp_path):
    base = tmp_path / "base.yaml"
    path = write("extends: base.yaml\nname: mine\n")
    with pytest.raises(UserError, match="base.yaml does not exist"):
        load_recipe(path)
    base.write_text("name: base\nsede: 1\n")
    with pytest.raises(UserError, match=f"^{re.escape(str(base))}:2: unknown key sede: did you mean seed?"):
        load_recipe(path)
    base.write_text("extends: recipe.yaml\nname: base\n")
    with pytest.raises(UserError, match="recipe.yaml extends itself by way of"):
        load_recipe(path)
    with pytest.raises(UserError, match=r"extends is \['a'\], expected the path of a recipe"):
        load_recipe(write("extends: [a]\nname: x\n"))


@pytest.mark.parametrize("rest", ["train_blocks: none", "lora: {rank: 4}"])
def test_a_core_from_nothing_must_train_whole(write, rest):
    with pytest.raises(
        UserError, match="student.core is base, which starts with random weights: all of it must train"
    ):
        load_recipe(write(f"name: x\nstudent:\n  core: base\n  {rest}\n"))


def test_a_renamed_key_is_named_by_its_present_name():
    with pytest.raises(UserError, match="student.latest_time: it is called student.max_timestep now"):
        load_recipe(RECIPES / "quickstart.yaml", ["student.latest_time=0.9"])
