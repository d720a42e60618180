"""Draws a small corpus with a teacher made of arithmetic; run as a script, it dies by SIGKILL at chosen moments.

Usage: draw_corpus.py FOLDER MOMENT:COUNT..., a corpus `FOLDER/MOMENT:COUNT` each, killed the COUNT-th time the moment
comes. Exits with 0 if every one of them died so.
Or: draw_corpus.py FOLDER --share RANK/MOMENT:COUNT..., a corpus `FOLDER/RANK` each by three processes at once, of which
one dies so, and then by two.
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch

from l2p.lift import Lift
from l2p.recipe import CorpusConfig
from l2p.teachers.protocol import Conditioning, LatentGeometry, Teacher

CONFIG = CorpusConfig(num_pairs=11, num_inference_steps=2, batch_size=2, shard_size=4)


class ArithmeticTeacher(Teacher):
    """Deterministic, instant, and with outputs that depend on the noise and on the prompt."""

    name, revision, license = "arithmetic", None, "Apache-2.0"
    sha256 = "a" * 64
    geometry = LatentGeometry(channels=4, compression=2, packing=2)
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.transformer = torch.nn.Linear(2, 2)
        torch.nn.init.constant_(self.transformer.weight, 0.5)
        torch.nn.init.constant_(self.transformer.bias, 0.25)

    def encode_prompts(self, prompts):
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        return Conditioning(lengths[:, None, None].float() / 100, torch.ones_like(lengths))

    def times(self, num_inference_steps, height, width):
        return torch.linspace(1, 0, num_inference_steps + 1)

    def velocity(self, z_t, t, conditioning, guidance_scale=0.0):
        return z_t - conditioning.embeds[..., None] + guidance_scale

    def encode(self, images):
        return torch.nn.functional.avg_pool2d(images, 2)[:, [0, 1, 2, 0]]

    def decode(self, z):
        return torch.nn.functional.interpolate(z[:, :3], scale_factor=2)


def lift() -> Lift:
    generator = torch.Generator().manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(48, 16, generator=generator, dtype=torch.float64))
    return Lift(basis, 1.5, torch.zeros(48, dtype=torch.float64), 0.8, 0.9, 0.95)


def draw(folder, config=CONFIG, **settings):
    from l2p.corpus import synthesize

    wanted = {"height": 16, "width": 24, "seed": 5, "progress": False} | settings
    return synthesize(ArithmeticTeacher(), lift(), config, folder, **wanted)


def die_at(moment: str, count: int) -> None:
    """Arrange for SIGKILL at the `count`-th time this moment comes."""
    passed = 0

    def arrive() -> None:
        nonlocal passed
        passed += 1
        if passed == count:
            os.kill(os.getpid(), signal.SIGKILL)

    def before(owner, name, wanted=lambda *_: True):
        original = getattr(owner, name)

        def wrapped(*args, **kwargs):
            if wanted(*args):
                arrive()
            return original(*args, **kwargs)

        setattr(owner, name, wrapped)

    from l2p.corpus import shards, synthesis

    def to_shard(_, target):
        return Path(target).suffix == ".tar"

    def to_manifest(_, target):
        return Path(target).name == "manifest.json"

    if moment == "drawing":
        before(synthesis, "_draw")
    elif moment == "writing a sample":
        before(shards, "_add")
    elif moment == "before the shard's rename":
        before(os, "replace", to_shard)
    elif moment == "before the manifest":
        before(shards.ShardWriter, "_write_manifest")
    elif moment == "before the manifest's rename":
        before(os, "replace", to_manifest)
    else:
        raise ValueError(moment)


def die_alone(folder: Path, cases: list[str]) -> None:
    for case in cases:
        child = os.fork()  # importing torch once is quicker than once a case
        if child == 0:
            moment, _, count = case.partition(":")
            die_at(moment, int(count))
            draw(folder / case)
            os._exit(1)
        status = os.waitpid(child, 0)[1]
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
            sys.exit(f"{case} did not die as it should: {status}")


def draw_together(folder: Path, count: int, dying: int | None = None, when: str = "") -> None:
    children = {}
    for rank in range(count):
        child = os.fork()
        if child == 0:
            if rank == dying:
                die_at(when.partition(":")[0], int(when.partition(":")[2]))
            draw(folder, replace(CONFIG, num_prompts=7), share=(rank, count))
            os._exit(0)
        children[child] = rank
    for child, rank in children.items():
        status = os.waitpid(child, 0)[1]
        if (rank == dying) != os.WIFSIGNALED(status) or (rank != dying and status):
            sys.exit(f"process {rank} ended with {status}")


if __name__ == "__main__":
    torch.set_num_threads(1)  # a fork may not inherit a pool of threads
    where, *words = sys.argv[1:]
    if words[0] == "--share":
        for rank, when in (case.split("/") for case in words[1:]):
            draw_together(Path(where) / rank, 3, int(rank), when)
            draw_together(Path(where) / rank, 2)
    else:
        die_alone(Path(where), words)
