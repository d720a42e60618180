"""Puts the shipped recipes into the wheel as ``l2p/recipes``; everything else is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithRecipes(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "l2p" / "recipes"
            target.mkdir(parents=True, exist_ok=True)
            for recipe in sorted((Path(__file__).parent / "recipes").glob("*.yaml")):
                shutil.copyfile(recipe, target / recipe.name)


setup(cmdclass={"build_py": BuildWithRecipes})
