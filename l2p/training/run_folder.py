"""The folder of one distillation: its paths, its lock, and the markers that say which stage is done.

    recipe.yaml  lift.safetensors  lift/  corpus/  checkpoints/STAGE.ckpt  logs/STAGE.csv  previews/  stages/STAGE.json
    student/  metrics.json  report.html

A marker is written once, when its stage is done, and holds the settings the stage depended on. A rerun compares them:
equal settings are skipped, changed ones are refused by name, for a half-new run would lie about what made it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from l2p.errors import UserError
from l2p.files import read_json, write_json
from l2p.locks import locked
from l2p.training.sharded import step_of

STAGES = ("lift", "corpus", "transfer", "one_step", "match", "student", "evaluation")
# What each stage reads of the recipe, besides what the stages before it read.
READS: dict[str, tuple[str, ...]] = {
    "lift": ("seed", "dtype", "teacher", "lift", "student.patch_size", "corpus.prompts"),
    "corpus": ("corpus",),
    "transfer": ("student", "transfer"),
    "one_step": ("student", "one_step"),
    "match": ("student", "match"),
    "student": ("student",),
    "evaluation": ("evaluation",),
}
# Knobs that change how often or where something is written, not what comes out.
NO_EFFECT = (
    "checkpoint_every", "preview_every", "path", "cache", "latency_runs", "peak_memory", "min_r2", "image_format",
    "latents", "trajectory_points", "accumulate",
)  # fmt: skip
OURS = ("lift", "corpus", "checkpoints", "logs", "previews", "stages", "student", "evaluation")
OUR_FILES = ("recipe.yaml", "lift.safetensors", "metrics.json", "report.html")


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries to one, with dotted keys."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {
        key: value
        for name, branch in tree.items()
        for key, value in flatten(branch, f"{prefix}.{name}" if prefix else name).items()
    }


def settings_of(stage: str, recipe: dict[str, Any]) -> dict[str, Any]:
    """The dotted settings that a stage's result depends on, of a recipe as a plain dictionary."""
    flat = flatten(recipe)
    sections = [section for name in STAGES[: STAGES.index(stage) + 1] for section in READS[name]]
    off = {s for s in STAGES if isinstance(recipe.get(s), dict) and recipe[s].get("enabled") is False}
    return {
        key: ("off" if key.split(".")[0] in off else value)
        for key, value in flat.items()
        if any(key == s or key.startswith(f"{s}.") for s in sections)
        and (key == "teacher.path" or key.split(".")[-1] not in NO_EFFECT)
    }


def changes(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The settings that differ, in words: "one_step.batch_size 16 -> 32"; empty where none does."""
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    told = [f"{key} {before.get(key)} -> {now.get(key)}" for key in keys[:3]]
    return ", ".join(told) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


class RunFolder:
    """Paths and markers of one `output_dir`."""

    def __init__(self, path: str | Path, recipe: dict[str, Any]):
        self.path = Path(path)
        self.recipe = json.loads(json.dumps(recipe))  # as the markers will have it: no tuples, no dataclasses

    def marker(self, stage: str) -> Path:
        return self.path / "stages" / f"{stage}.json"

    def grid(self, stage: str) -> Path:
        return self.path / "lift" / "grid.png" if stage == "lift" else self.path / "stages" / f"{stage}.png"

    def checkpoint(self, stage: str, sharded: bool = False) -> Path:
        """Where a stage under way is kept: a file, or a folder that sharded processes share."""
        return self.path / "checkpoints" / f"{stage}.{'shards' if sharded else 'ckpt'}"

    def checkpoints(self, stage: str) -> list[Path]:
        """Those that are here; two where a kill came between writing the newer and removing the older kind."""
        return [path for path in (self.checkpoint(stage), self.checkpoint(stage, True)) if path.exists()]

    def latest(self, stage: str) -> Path | None:
        """The checkpoint to go on from: of two the one of more steps."""
        found = self.checkpoints(stage)
        return max(found, key=step_of) if len(found) > 1 else next(iter(found), None)

    def log(self, stage: str) -> Path:
        return self.path / "logs" / f"{stage}.csv"

    def preview(self, stage: str, step: int) -> Path:
        return self.path / "previews" / f"{stage}-{step:06d}.png"

    def settings(self, stage: str) -> dict[str, Any]:
        return settings_of(stage, self.recipe)

    def take_over(self, stage: str, other: RunFolder) -> bool:
        """Copy a stage that ``other`` has done with the settings that this folder wants; whether there was one to copy.

        The corpus lies where its recipe says and is not copied, nor are student and evaluation, which are quick to redo.
        """
        done = other.marker(stage).is_file() and read_json(other.marker(stage))["settings"]
        if self.marker(stage).is_file() or done != self.settings(stage):
            return False
        left = [other.log(stage), other.grid(stage), *other.checkpoints(stage)]
        left += [other.path / name for name in ("lift.safetensors", "lift") if stage == "lift"]
        for path in (path for path in left if path.exists()):
            own = self.path / path.relative_to(other.path)
            own.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                shutil.copytree(path, own, dirs_exist_ok=True)
            else:
                shutil.copyfile(path, own)
        self.marker(stage).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(other.marker(stage), self.marker(stage))  # last: from now on the stage is skipped
        return True

    def summary(self, stage: str) -> dict[str, Any] | None:
        """What a done stage reported, or None. Raises UserError where it was done with other settings."""
        if not self.marker(stage).is_file():
            return None
        summary = read_json(self.marker(stage))
        self.check_settings(stage, summary["settings"])
        return summary

    def check_settings(self, stage: str, before: dict[str, Any]) -> None:
        """Raises UserError, naming the change, where `before` are not the recipe's settings for this stage."""
        if changed := changes(before, self.settings(stage)):
            raise UserError(
                f"{self.path} has its {stage} stage with other settings ({changed}): "
                "choose another output_dir, or start anew with --resume never"
            )

    def finish(
        self, stage: str, seconds: float, figures: dict[str, Any], warnings: list[str]
    ) -> dict[str, Any]:
        """Write a stage's marker: from now on it is skipped."""
        summary = {
            "stage": stage,
            "seconds": round(seconds, 2),
            "figures": figures,
            "warnings": warnings,
            "grid": str(self.grid(stage).relative_to(self.path)) if self.grid(stage).is_file() else None,
            "settings": self.settings(stage),
        }
        self.marker(stage).parent.mkdir(parents=True, exist_ok=True)
        write_json(self.marker(stage), summary)
        return summary

    def forget_from(self, stage: str) -> None:
        """Take back the markers of a stage and of all after it."""
        for name in STAGES[STAGES.index(stage) :]:
            self.marker(name).unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove what earlier runs left here, and nothing else. Raises UserError in a folder that is no run's."""
        present = [self.path / name for name in (*OURS, *OUR_FILES) if (self.path / name).exists()]
        if present and not (self.path / "recipe.yaml").is_file():
            raise UserError(
                f"{self.path} holds {present[0].name} but no recipe.yaml of ours: choose another output_dir"
            )
        for path in present:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process. Raises UserError while another living process has it."""
        with locked(self.path, "output_dir"):
            yield
