"""The folder of one training: its paths, its lock, whose it is, and the markers that say which stage is done.

    .l2p.json  stages/STAGE.json  checkpoints/STAGE.ckpt  logs/STAGE.csv  previews/

`.l2p.json` marks the folder as ours: a folder with other people's files is refused, and of ours `clear` removes the names
that a training writes and no others. A stage's marker is written once, when the stage is done, and holds the settings and
the hashes of the inputs that it depended on. A rerun compares them: equal ones are skipped, changed ones are refused by
name, for a half-new run would lie about what made it. A stage is done where its marker and its files are.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from l2p.artifacts import differences, digest, flatten, hash_model, plain, read_sealed, write_sealed
from l2p.corpus.manifest import missing_file, read_manifest
from l2p.errors import UserError
from l2p.files import remove
from l2p.hub.client import commit_of
from l2p.locks import locked
from l2p.terminal import say
from l2p.training.engine.sharded import step_of

MARK = ".l2p.json"
COSMETIC = ("name", "output_dir", "device", "threads", "logging")  # sections that change no result
TINY = ("tiny-teacher", "tiny-student", "tiny-prompts.txt")  # what `--tiny` puts into its own folder


def without_effect(*sections: str) -> tuple[str, ...]:
    """The dotted keys of these sections that say how often a training is kept and shown, which changes no result."""
    return tuple(f"{section}.{key}" for section in sections for key in ("checkpoint_every", "preview_every"))


class TrainingFolder:
    """Paths, mark and markers of one `output_dir`.

    Args:
        recipe: as nested dictionaries.
        inputs: dotted name -> hash of a file, folder or teacher that the recipe names (None: not here, so not compared).
    """

    kind: ClassVar[str]  # the command that trains here
    stages: ClassVar[tuple[str, ...]]
    no_effect: ClassVar[tuple[str, ...]] = ()  # dotted keys that change no result
    recorded_later: ClassVar[tuple[str, ...]] = ()  # dotted keys that markers of earlier versions lack
    owned: ClassVar[tuple[str, ...]] = ()  # patterns of what this kind writes, besides what all write

    def __init__(
        self, path: str | Path, recipe: Mapping[str, Any], inputs: Mapping[str, str | None] | None = None
    ):
        self.path = Path(path)
        self.recipe = plain(recipe)  # as the markers will have it: no tuples, no dataclasses
        self.inputs = dict(inputs or {})

    # ------------------------------------------------------------------------------------------- paths

    def marker(self, stage: str) -> Path:
        return self.path / "stages" / f"{stage}.json"

    def grid(self, stage: str) -> Path:
        return self.path / "stages" / f"{stage}.png"

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

    # -------------------------------------------------------------------------------- whose the folder is

    def check_ours(self) -> None:
        """Raises UserError where the folder holds files that no training of this kind left there."""
        if (self.path / MARK).is_file():
            kind = self._mark()["kind"]
            if kind != self.kind:
                raise UserError(f"{self.path} is the folder of `l2p {kind}`: choose another output_dir")
            return
        if not self.path.is_dir() or self._was_made_before_marks():
            return
        known = (*TINY, "corpus")  # a corpus may be drawn before its run; its manifest says what it is
        foreign = sorted(
            p.name for p in self.path.iterdir() if not p.name.startswith(".") and p.name not in known
        )
        if foreign:
            raise UserError(
                f"{self.path} holds {foreign[0]}, which no `l2p {self.kind}` left there: choose another output_dir"
            )

    def _was_made_before_marks(self) -> bool:
        for path in self.path.glob("stages/*.json"):
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue
            if isinstance(found, dict) and found.keys() >= {"stage", "settings"}:
                return True
        return False

    def claim(self) -> None:
        """Mark the folder as ours. Raises UserError as :meth:`check_ours`."""
        self.check_ours()
        try:
            read_sealed(self.path / MARK, "it is written anew, and names on the Hub are pinned anew")
        except UserError as error:
            if (self.path / MARK).is_file():
                say(str(error))
            write_sealed(self.path / MARK, {"kind": self.kind, "pins": {}})

    def _mark(self) -> dict[str, Any]:
        """What the mark says; a damaged one still marks the folder as ours, and :meth:`claim` writes it anew."""
        try:
            mark = read_sealed(self.path / MARK, "")
        except UserError:
            mark = {}
        return {"kind": self.kind, "pins": {}} | mark

    def pinned(self, key: str, wanted: str, find: Callable[[], str | None]) -> str | None:
        """The commit that a name on the Hub stood for when this run first used it.

        Args:
            key: of the recipe, such as "teacher".
            wanted: the name and revision as the recipe has them; another one is not pinned to the old one's commit.
            find: gives the commit now, None for what is not on the Hub.
        """
        mark = self._mark()
        known = mark["pins"].get(key)
        if known is not None and known["wanted"] == wanted:
            return known["commit"]
        commit = find()
        if commit is not None:
            mark["pins"][key] = {"wanted": wanted, "commit": commit}
            write_sealed(self.path / MARK, mark)
        return commit

    def pinned_teacher(self, name: str, revision: str | None = None, fetch: bool = True) -> str | None:
        """The commit of a teacher on the Hub when this run first used it, which is then an input of its stages; None for one
        that is not from there, or with ``fetch`` false has not been used yet."""
        from l2p.teachers import is_local_teacher, resolve

        if is_local_teacher(name) or not (fetch or (self.path / MARK).is_file()):
            return None
        commit = self.pinned(
            "teacher", f"{name}@{revision}", lambda: commit_of(resolve(name, revision)) if fetch else None
        )
        if commit is not None:
            self.inputs["teacher.sha256"] = commit
        return commit

    def clear(self) -> None:
        """Remove what earlier runs left here, by name, and nothing else. Raises UserError as :meth:`check_ours`."""
        self.check_ours()
        patterns = [f"{folder}/{stage}{end}" for stage in self.stages for folder, end in EACH] + [*self.owned]
        tops = {pattern.split("/")[0] for pattern in patterns if "/" in pattern}
        for top in (self.path / name for name in tops):
            if top.is_symlink():
                top.unlink()
        for pattern in patterns:
            for path in sorted(self.path.glob(pattern)):
                remove(path)
        for top in (self.path / name for name in tops):
            folders = sorted((path for path in top.rglob("*") if path.is_dir()), reverse=True)
            for folder in [*folders, top]:
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process. Raises UserError while another living process has it."""
        with locked(self.path, "output_dir"):
            yield

    # ------------------------------------------------------------------------------------------- markers

    def settings(self, stage: str) -> dict[str, Any]:
        """What a stage's result depends on: the recipe but for what comes after it, and the hashes of its inputs."""
        later = self.stages[self.stages.index(stage) + 1 :]
        return {
            key: value
            for key, value in (flatten(self.recipe) | self.inputs).items()
            if key.split(".")[0] not in (*later, *COSMETIC) and key not in self.no_effect
        }

    def summary(self, stage: str) -> dict[str, Any] | None:
        """What a done stage reported, or None, also where its files are gone.

        Raises:
            UserError: it was done with other settings, or its files are not what it wrote.
        """
        if not self.marker(stage).is_file():
            return None
        summary = read_sealed(self.marker(stage), "delete this file and run again")
        self.check_settings(stage, summary["settings"])
        if (missing := self.missing(stage)) is not None:
            say(f"{stage}: {missing} is gone, so the stage is done again")
            return None
        before, now = summary.get("content", {}), self.content(stage)
        if name := next((name for name in before if now.get(name) != before[name]), None):
            raise UserError(
                f"{self.place(name)} is not what the {stage} stage left (damaged, or changed since): move it away and run "
                "again, which writes it anew"
            )
        return summary

    def place(self, name: str) -> Path:
        """Path of something that a stage left, by its name in :meth:`content`."""
        return self.path / name

    def done(
        self, enabled: Sequence[str], training: Sequence[str], readers: Sequence[str] = ()
    ) -> dict[str, dict[str, Any] | None]:
        """What the stages that are done reported, None for the others.

        A training stage counts as done without its checkpoint only where nothing is still to start from it.

        Args:
            enabled: stages, in their order.
            training: those that leave a checkpoint.
            readers: those of the others that start from the last checkpoint; without any, something after all does.
        """
        found = {stage: self.summary(stage) for stage in enabled}
        needed = not readers
        for stage in reversed(enabled):
            if stage in training and found[stage] is not None and needed and not self.checkpoints(stage):
                say(f"{stage}: {self.checkpoint(stage)} is gone, so the stage is done again")
                found[stage] = None
            if stage in training or stage in readers:
                needed = found[stage] is None
        return found

    def missing(self, stage: str) -> Path | None:
        """The first file that a done stage should have left and that is not here."""
        return None

    def content(self, stage: str) -> dict[str, str]:
        """Hashes of what a stage left that later ones read, by name."""
        return {}

    def check_settings(self, stage: str, before: Mapping[str, Any]) -> None:
        """Raises UserError, naming the change, where `before` are not the recipe's settings for this stage."""
        now = self.settings(stage)
        if changed := differences(
            {key: now[key] for key in self.recorded_later if key in now} | dict(before), now
        ):
            raise UserError(
                f"{self.path} has its {stage} stage with other settings ({changed}): choose another output_dir, "
                f"{self.way_back(stage)}or start anew with --resume never"
            )

    def way_back(self, stage: str) -> str:
        """The gentler advice before "start anew", where there is one."""
        return ""

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
            "content": self.content(stage),
        }
        self.marker(stage).parent.mkdir(parents=True, exist_ok=True)
        write_sealed(self.marker(stage), summary)
        return summary

    def forget_from(self, stage: str) -> None:
        """Take back the markers of a stage and of all after it."""
        for name in self.stages[self.stages.index(stage) :]:
            self.marker(name).unlink(missing_ok=True)


EACH = (  # what each stage leaves: folder, and what follows the stage's name
    ("stages", ".json"),
    ("stages", ".png"),
    ("checkpoints", ".ckpt"),
    ("checkpoints", ".shards"),
    ("logs", ".csv"),
    ("logs/tensorboard", ""),
    ("previews", "-*.png"),
)

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
MODEL = ("*.json", "*.safetensors", "text_encoder*/*", "tokenizer*/*")  # a student's folder


class RunFolder(TrainingFolder):
    """The folder of one distillation.

    recipe.yaml  lift.safetensors  lift/  corpus/  checkpoints/  logs/  previews/  stages/  student/  metrics.json  report.html
    """

    kind = "distill"
    stages = STAGES
    no_effect = (
        "corpus.path", "evaluation.cache", *without_effect("transfer", "one_step", "match"),
        *(f"{stage}.accumulate" for stage in ("transfer", "one_step", "match")),
    )  # fmt: skip
    recorded_later = (
        "corpus.image_format", "corpus.latents", "lift.min_r2", "evaluation.latency_runs", "evaluation.peak_memory",
    )  # fmt: skip
    owned = (
        "recipe.yaml",
        "lift.safetensors",
        "metrics.json",
        "report.html",
        "lift/grid.png",
        *(f"{folder}/{name}" for folder in ("lift", "student") for name in MODEL),
        "corpus/shard-*.tar",
        "corpus/manifest*.json",
        "corpus/lift.safetensors",
        "corpus/prompts*.json*",
        "corpus/grid.png",
        "evaluation/pictures.npz",
        "evaluation/*/*.npz",
        "logs/wandb",
    )

    def grid(self, stage: str) -> Path:
        return self.path / "lift" / "grid.png" if stage == "lift" else super().grid(stage)

    def settings(self, stage: str) -> dict[str, Any]:
        return settings_of(stage, self.recipe, self.inputs)

    @property
    def corpus(self) -> Path:
        """Where the recipe's corpus lies."""
        return Path(self.recipe["corpus"].get("path") or self.path / "corpus")

    def missing(self, stage: str) -> Path | None:
        if stage == "corpus":
            return missing_file(self.corpus, self.recipe["corpus"]["num_pairs"])
        names = {
            "lift": ("lift.safetensors", "lift/config.json"),
            "student": ("student/config.json",),
            "evaluation": ("metrics.json", "report.html"),
        }
        paths = [self.path / name for name in names.get(stage, ())]
        return next((path for path in paths if not path.is_file()), None)

    def content(self, stage: str) -> dict[str, str]:
        if stage == "corpus":
            return {"corpus": digest(read_manifest(self.corpus)["settings"])}
        return {stage: hash_model(self.path / stage)} if stage in ("lift", "student") else {}

    def place(self, name: str) -> Path:
        return self.corpus if name == "corpus" else super().place(name)

    def way_back(self, stage: str) -> str:
        if stage in STAGES[2:]:
            return f"redo this stage and what follows with --resume {stage}, "
        return ""

    def take_over(self, stage: str, other: RunFolder) -> bool:
        """Copy a stage that ``other`` has done with the settings that this folder wants; whether there was one to copy.

        The corpus lies where its recipe says and is not copied, nor are student and evaluation, which are quick to redo.
        """
        if self.marker(stage).is_file() or not other.marker(stage).is_file():
            return False
        done = read_sealed(other.marker(stage), "delete this file and run that row again")
        try:
            self.check_settings(stage, done["settings"])
        except UserError:
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


def settings_of(
    stage: str, recipe: Mapping[str, Any], inputs: Mapping[str, str | None] | None = None
) -> dict[str, Any]:
    """The dotted settings that a distillation's stage depends on, of a recipe as a plain dictionary and its inputs."""
    flat = flatten(recipe) | dict(inputs or {})
    sections = [section for name in STAGES[: STAGES.index(stage) + 1] for section in READS[name]]
    off = {s for s in STAGES if isinstance(recipe.get(s), dict) and recipe[s].get("enabled") is False}
    return {
        key: ("off" if key.split(".")[0] in off else value)
        for key, value in flat.items()
        if any(key == s or key.startswith(f"{s}.") for s in sections) and key not in RunFolder.no_effect
    }
