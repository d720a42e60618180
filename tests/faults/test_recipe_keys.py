"""Every key of a recipe does something: another value changes what a tiny run leaves, or is refused or warned of.

Objectives' options: tests/objectives/test_options.py. Options of the command line: tests/cli/test_options.py.
"""

from __future__ import annotations

import hashlib
import tarfile
from dataclasses import asdict

import pytest

from l2p.recipe import Recipe
from tests.faults.jobs import content

LORA = ("student.lora={rank: 2}",)
TRANSFER = ("transfer.enabled=true", "transfer.steps=2", "transfer.batch_size=2")
MATCH = ("match.enabled=true", "match.steps=2", "match.batch_size=2")
STEPS = ("corpus.num_inference_steps=3",)

ELSEWHERE = {  # key, or section with a dot -> why it is not flipped here
    "name": "a name",
    "output_dir": "each run has one",
    "device": "there is one",
    "threads": "time alone",
    "teacher.path": "tests/training/test_run_folder.py",
    "corpus.llm": "needs an endpoint: tests/corpus/test_llm.py",
    "corpus.quality": "needs a scorer: tests/corpus/test_quality.py",
    "corpus.batch_size": "memory and time alone: a picture is its seed's",
    "student.gradient_checkpointing": "memory and time alone",
    "evaluation.batch_size": "memory and time alone",
    "evaluation.latency_runs": "the number of clockings",
    "parallel.": "several processes: tests/training/test_processes.py",
    "logging.wandb_project": "needs an account",
    "corpus.noise_generator": "tests/test_noise.py",
}
FLIPS: dict[str, tuple[str, ...]] = {  # key -> another value, and what else both runs have
    "seed": ("1",),
    "dtype": ("bf16",),
    "teacher.revision": ("main",),
    "teacher.num_inference_steps": ("2",),
    "teacher.guidance_scale": ("2.0",),
    "teacher.height": ("48",),
    "teacher.width": ("48",),
    "corpus.num_pairs": ("6",),
    "corpus.prompts": ("landscapes",),
    "corpus.num_prompts": ("1",),
    "corpus.held_out": ("0.5",),
    "corpus.filters": ("{min_words: 6}",),
    "corpus.num_inference_steps": ("2",),
    "corpus.solver": ("adams", *STEPS),
    "corpus.shard_size": ("4",),
    "corpus.image_format": ("webp",),
    "corpus.latents": ("false",),
    "corpus.path": ("${output_dir}/elsewhere",),
    "lift.num_images": ("4",),
    "lift.scale": ("energy",),
    "lift.min_r2": ("0.99",),
    "student.patch_size": ("32",),
    "student.num_steps": ("2",),
    "student.max_timestep": ("0.6",),
    "student.project_noise": ("true",),
    "student.interval": ("true",),
    "student.random_core": ("true",),
    "student.core": ("tiny",),
    "student.train_blocks": ("none",),
    "student.lora": ("{rank: 2}",),
    "student.head.kind": ("linear",),
    "student.head.fine_patch": ("4",),
    "student.head.width": ("48",),
    "student.head.num_blocks": ("2",),
    "student.head.head_dim": ("32",),
    "student.head.tile": ("8",),
    "student.head.halo": ("1",),
    "student.head.pretrained": ("not/there",),
    "evaluation.num_images": ("3",),
    "evaluation.seed": ("20000",),
    "evaluation.prompts": ("landscapes",),
    "evaluation.preview_images": ("1",),
    "evaluation.cache": ("${output_dir}/elsewhere",),
    "evaluation.clip": ("not/there",),
    "evaluation.features": ("[lpips]",),
    "evaluation.peak_memory": ("true",),
    "logging.tensorboard": ("true",),
    "logging.wandb": ("true",),
}
STAGE = {
    "enabled": "false",
    "steps": "3",
    "batch_size": "1",
    "accumulate": "2",
    "learning_rate": "0.1",
    "warmup_steps": "2",
    "weight_decay": "5.0",
    "gradient_clip": "0.001",
    "ema_decay": "0.0",
    "optimizer": "adamw",
    "checkpoint_every": "1",  # what a kill costs
    "preview_every": "1",
    "objectives": "{color: {weight: 1.0}}",
}
for _stage, _on in {"transfer": TRANSFER, "one_step": (), "match": MATCH}.items():
    FLIPS |= {f"{_stage}.{key}": (value, *_on) for key, value in STAGE.items() if key != "checkpoint_every"}
ELSEWHERE |= {f"{stage}.checkpoint_every": "what a kill costs" for stage in ("transfer", "one_step", "match")}


def leaves(values: dict, above: str = "") -> set[str]:
    found = set()
    for key, value in values.items():
        inside = isinstance(value, dict) and value and key != "objectives"
        found |= leaves(value, f"{above}{key}.") if inside else {above + key}
    return found


def test_every_key_is_flipped_or_tested_elsewhere():
    sections = tuple(key for key in ELSEWHERE if key.endswith("."))
    known = {key for key in leaves(asdict(Recipe(name="x"))) if not key.startswith(sections)}
    assert known == FLIPS.keys() | {key for key in ELSEWHERE if not key.endswith(".")}


def left(world, overrides: tuple[str, ...]) -> object:
    """What a run leaves that shows its effect: weights, pictures, figures and logs, or the line that refused or warned."""
    world.clean()
    done = world.run("distill", more=overrides)
    if done.code:
        assert done.code == 2 and len(done.lines) == 1, done.err
        return done.lines
    warnings = sorted(line for line in (done.out + done.err).splitlines() if "warning" in line)
    files = {}
    for path in sorted(p for p in world.root.rglob("*") if p.is_file()):
        name = path.relative_to(world.root).as_posix()
        if path.suffix == ".tar":
            with tarfile.open(path) as tar:
                files[name] = [
                    hashlib.sha256(tar.extractfile(m).read()).hexdigest()  # type: ignore[union-attr]
                    for m in tar.getmembers()
                    if not m.name.endswith(".json")
                ]
        elif path.suffix in (".safetensors", ".png", ".npz", ".csv"):
            files[name] = repr(content(path))
        elif path.name == "metrics.json":
            files[name] = {k: v for k, v in content(path).items() if k not in ("recipe", "inputs", "config")}
        else:
            files[name] = "there"
    return warnings, files


@pytest.mark.slow
@pytest.mark.parametrize("key", FLIPS)
def test_another_value_is_noticed(world, key, undisturbed_runs):
    value, *both = FLIPS[key]
    if tuple(both) not in undisturbed_runs:
        undisturbed_runs[tuple(both)] = left(world, tuple(both))
    assert left(world, (*both, f"{key}={value}")) != undisturbed_runs[tuple(both)]


@pytest.fixture(scope="module")
def undisturbed_runs() -> dict:
    return {}


@pytest.mark.slow
def test_the_same_recipe_leaves_the_same(world, undisturbed_runs):
    undisturbed_runs.setdefault((), left(world, ()))
    assert left(world, ()) == undisturbed_runs[()]  # else every key would seem to matter
