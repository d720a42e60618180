"""Draws a small corpus with a teacher made of arithmetic; run as a script, it dies by SIGKILL at chosen moments.

Usage: draw_corpus.py FOLDER MOMENT:COUNT..., a corpus `FOLDER/MOMENT:COUNT` each, killed the COUNT-th time the moment
comes. Exits with 0 if every one of them died so.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import torch

from l2p.lift import Lift
from l2p.teachers.protocol import Conditioning, LatentGeometry, Teacher

CONFIG = SimpleNamespace(
    num_pairs=11, prompts="landscapes", num_inference_steps=2, solver="teacher", batch_size=2, shard_size=4
)


class ArithmeticTeacher(Teacher):
    """Deterministic, instant, and with outputs that depend on the noise and on the prompt."""

    name, revision, license = "arithmetic", None, "Apache-2.0"
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


if __name__ == "__main__":
    torch.set_num_threads(1)  # a fork may not inherit a pool of threads
    for case in sys.argv[2:]:
        child = os.fork()  # importing torch once is quicker than once a case
        if child == 0:
            moment, _, count = case.partition(":")
            die_at(moment, int(count))
            draw(Path(sys.argv[1]) / case)
            os._exit(1)
        status = os.waitpid(child, 0)[1]
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
            sys.exit(f"{case} did not die as it should: {status}")
