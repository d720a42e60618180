"""Recipes by name, and the hints that name the right way to install."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from l2p import extras
from l2p.cli.main import main
from l2p.errors import UserError
from l2p.recipe import load_recipe
from l2p.shipped_recipes import copy_recipe, find_recipe, recipes_folder, shipped_recipes

ROOT = Path(__file__).parents[1]


def test_every_yaml_of_the_tree_is_listed_with_the_command_that_takes_it():
    found = shipped_recipes()
    assert set(found) == {path.stem for path in (ROOT / "recipes").glob("*.yaml")}
    assert found["quickstart"]["command"] == "distill" and found["landscapes-512"]["command"] == "grow"
    assert all(header["summary"] for header in found.values())


def test_a_name_loads_the_recipe_that_its_path_loads():
    assert load_recipe("quickstart") == load_recipe(ROOT / "recipes" / "quickstart.yaml")


def test_what_exists_as_a_path_wins_over_a_shipped_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("quickstart").write_text("name: mine\n")
    assert load_recipe("quickstart").name == "mine"
    assert find_recipe("sub/quickstart") == Path("sub/quickstart")  # a path stays a path


def test_copy_never_overwrites(tmp_path):
    copied = copy_recipe("quickstart", tmp_path)
    assert copied.read_bytes() == (recipes_folder() / "quickstart.yaml").read_bytes()
    with pytest.raises(UserError, match="exists"):
        copy_recipe("quickstart", tmp_path)
    with pytest.raises(UserError, match=r"no recipe 'nope'.*quickstart"):
        copy_recipe("nope", tmp_path)


def test_the_command_lists_and_copies(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(any(name in line for line in lines) for name in shipped_recipes())  # no name is cut
    assert max(map(len, lines)) <= 80
    assert main(["recipes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == shipped_recipes()
    assert main(["recipes", "copy", "quickstart"]) == 0 and Path("quickstart.yaml").is_file()
    for wrong in (["copy"], ["list", "quickstart"], ["copy", "quickstart", "x.yaml", "--json"]):
        assert main(["recipes", *wrong]) == 2


def test_hints_name_the_checkout_or_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert extras.install_hint("corpus") == "pip install -e '.[corpus]'"
    monkeypatch.chdir(tmp_path)
    assert extras.install_hint("corpus") == f"pip install -e '{ROOT}[corpus]'"
    monkeypatch.setattr(extras, "checkout", lambda: None)
    assert extras.install_hint("corpus") == "pip install 'latent2pixel[corpus]'"
    assert extras.install_hint() == "pip install 'latent2pixel'"


def test_python_m_l2p_is_the_command():
    done = subprocess.run([sys.executable, "-m", "l2p", "--version"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("l2p ")


def test_all_names_are_listed_and_each_is_told_apart(l2p_info):
    import l2p

    names = l2p.list_models()
    assert "landscapes-128" in names["students"] and "landscapes-4x" in names["decoders"]
    assert "landscapes" in names["teachers"] and "Tongyi-MAI/Z-Image-Turbo" in names["published"]
    assert {*l2p_info()} == {*names, "presets"}
    assert l2p_info("landscapes")["kind"] == "teacher" and l2p_info("landscapes-4x")["kind"] == "decoder"
    assert set(l2p_info("landscapes")["parameters"]) >= {"transformer", "vae", "text_encoder"}
    assert "parameters" in l2p_info("landscapes-128")


@pytest.fixture
def l2p_info(capsys):
    """``l2p info [NAME] --json``, parsed; the table for people prints as well."""

    def run(*name: str):
        assert main(["info", *name]) == 0
        capsys.readouterr()
        assert main(["info", *name, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


def test_sections_become_overrides():
    from l2p.recipe import overrides_of

    sections = {
        "seed": 3,
        "name": "a: b",
        "one_step": {"steps": 10, "objectives": {"pairs": {"weight": 0.5}}},
        "x": None,
    }
    overrides = overrides_of(sections)
    assert "one_step.objectives.pairs.weight=0.5" in overrides and "x=null" in overrides
    recipe = load_recipe("quickstart", overrides[:4])
    assert recipe.seed == 3 and recipe.name == "a: b" and recipe.one_step.steps == 10
    assert recipe.one_step.objectives["pairs"]["weight"] == 0.5


def test_distil_in_python_takes_the_commands_overrides(monkeypatch):
    import l2p
    from l2p.training import distill

    seen = {}
    monkeypatch.setattr(
        distill, "run", lambda recipe, resume: seen.update(recipe=recipe, resume=resume) or {"student": "s"}
    )
    result = l2p.distill("quickstart", ["seed=5"], resume="never", one_step={"steps": 7})
    assert result == {"student": "s"} and seen["resume"] == "never"
    assert seen["recipe"].seed == 5 and seen["recipe"].one_step.steps == 7
