from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from l2p import images
from l2p.artifacts import read_sealed
from l2p.corpus import CorpusDataset, prompts_for, synthesize
from l2p.errors import UserError
from l2p.lift import fit_lift
from l2p.noise import GENERATORS, latent_noise, pixel_noise
from l2p.patches import patchify
from l2p.recipe import CorpusConfig
from l2p.teachers import load_teacher

KILLS = (
    "drawing:1",
    "drawing:4",
    "writing a sample:7",
    "before the shard's rename:1",
    "before the shard's rename:3",
    "before the manifest:1",
    "before the manifest:2",
    "before the manifest:4",
    "before the manifest's rename:3",
)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(corpora, straight, tmp_path):
    """At every moment: nothing lost, nothing doubled, every byte the same."""
    command = [sys.executable, corpora.__file__, str(tmp_path), *KILLS]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], stderr=subprocess.PIPE, timeout=300)
    assert done.returncode == 0, done.stderr.decode()
    for folder in (tmp_path / kill for kill in KILLS):
        if (folder / "manifest.json").exists():
            json.loads((folder / "manifest.json").read_text())
        corpora.draw(folder)
        assert files(folder) == files(straight), folder.name


def test_each_sample_is_the_teacher_s_answer_to_its_own_seed_and_prompt(corpora, straight):
    dataset, teacher, lift = CorpusDataset(straight), corpora.ArithmeticTeacher(), corpora.lift()
    assert len(dataset) == 11
    for index in (0, 5, 10):
        sample = dataset[index]
        assert sample["seed"] == 5 + index
        assert [sample["prompt"]] == prompts_for("landscapes", [index], 5)
        noise = pixel_noise("philox", [5 + index], 16, 24, lift.basis)  # as a student is given it
        eps = lift.noise_to_latent(patchify(noise, 4))
        assert (eps - latent_noise("philox", [5 + index], 16, 24, lift.basis)).abs().max() < 1e-5
        eps = teacher.unpack(latent_noise("philox", [5 + index], 16, 24, lift.basis))
        z = teacher.sample(eps, teacher.encode_prompts([sample["prompt"]]), 2)
        assert torch.equal(sample["latent"], z[0].half().float())
        assert sample["latent"].dtype == torch.float32
        assert np.array_equal(sample["image"], images.to_uint8(teacher.decode(z.half().float()))[0])


@pytest.mark.parametrize("noise_generator", GENERATORS)
def test_the_coupled_noise_is_white(noise_generator):
    """Variance 1 and no correlation between neighbouring latents, to the accuracy of the count."""
    generator = torch.Generator().manual_seed(1)
    lift = fit_lift(torch.randn(400, 48, generator=generator), torch.randn(400, 16, generator=generator))
    z = latent_noise(noise_generator, range(64), 32, 32, lift.basis).reshape(-1, 16).double()
    covariance = z.T @ z / len(z)
    assert (covariance - torch.eye(16)).abs().max() < 5 * (2 / len(z)) ** 0.5


def test_pairs_of_other_noise_are_refused(corpora, straight, tmp_path):
    """Also those of a manifest from before generators had names, whose noise was by mt19937."""
    folder = corpora.draw(tmp_path / "old", replace(corpora.CONFIG, noise_generator="mt19937"))
    assert not torch.equal(CorpusDataset(folder)[0]["latent"], CorpusDataset(straight)[0]["latent"])
    manifest = read_sealed(folder / "manifest.json", "")
    assert manifest["settings"].pop("noise_generator") == "mt19937"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(
        UserError, match=r"is by mt19937, this run's by philox: set corpus.noise_generator=mt19937"
    ):
        corpora.draw(folder)
    corpora.draw(folder, replace(corpora.CONFIG, noise_generator="mt19937"))


def test_a_corpus_grows_and_its_first_pairs_stay(corpora, straight, tmp_path):
    folder = corpora.draw(tmp_path / "corpus", replace(corpora.CONFIG, num_pairs=6))
    assert len(CorpusDataset(folder)) == 6
    corpora.draw(folder)
    assert files(folder) == files(straight)


def test_asked_for_fewer_pairs_the_corpus_keeps_what_it_has(corpora, tmp_path):
    folder = corpora.draw(tmp_path / "corpus")
    before = files(folder)
    corpora.draw(folder, replace(corpora.CONFIG, num_pairs=3))
    assert files(folder) == before
    assert len(CorpusDataset(folder, 3)) == 3


@pytest.mark.parametrize(
    ("changes", "settings", "named"),
    [
        ({"num_inference_steps": 3}, {}, "num_inference_steps: 2 there, 3 here"),
        ({"shard_size": 8}, {}, "shard_size"),
        ({}, {"guidance_scale": 1.0}, "guidance_scale"),
        ({}, {"seed": 6}, "prompts_sha256|seed"),
        ({}, {"width": 16}, "width: 24 there, 16 here"),
        ({}, {"dtype": torch.bfloat16}, "dtype: float32 there, bfloat16 here"),
    ],
)
def test_other_settings_are_refused_by_name(corpora, straight, changes, settings, named):
    before = files(straight)
    with pytest.raises(UserError, match=named) as error:
        corpora.draw(straight, replace(corpora.CONFIG, **changes), **settings)
    assert "delete" in str(error.value) and "\n" not in str(error.value)
    assert files(straight) == before


def test_a_retrained_teacher_is_another_teacher(tiny_pipeline, tmp_path):
    """One bit of any part's weights, in a folder or in memory."""
    folder = tmp_path / "teacher"
    shutil.copytree(tiny_pipeline, folder)
    teacher = load_teacher(folder)
    before = teacher.sha256
    assert (
        before == load_teacher(tiny_pipeline).sha256 != teacher.with_transformer(teacher.transformer).sha256
    )
    (folder / "notes.txt").write_text("not a part of it")
    assert teacher.sha256 == before
    for part in ("vae", "transformer", "text_encoder"):
        (path,) = (folder / part).glob("*.safetensors")
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        assert teacher.sha256 != before
        before = teacher.sha256
    built = teacher.with_transformer(teacher.transformer)
    before = built.sha256
    with torch.no_grad():
        next(teacher.vae.parameters()).mul_(1.001)
    assert built.sha256 != before


def test_numbers_that_are_not_finite_stop_the_drawing(corpora, tmp_path, monkeypatch):
    monkeypatch.setattr(corpora.ArithmeticTeacher, "decode", lambda self, z: z[:, :3] * torch.nan)
    with pytest.raises(UserError, match="not finite for the seeds 5 to 6"):
        corpora.draw(tmp_path / "corpus")
    assert not list((tmp_path / "corpus").glob("*.tar"))


@pytest.mark.parametrize(("name", "value"), [("batch_size", 0), ("num_pairs", 0), ("shard_size", -1)])
def test_impossible_sizes_are_refused(corpora, tmp_path, name, value):
    with pytest.raises(UserError, match=f"{name} is {value}, expected"):
        corpora.draw(tmp_path / "corpus", replace(corpora.CONFIG, **{name: value}))


def test_adams_comes_nearer_the_teacher_s_own_steps(corpora, tmp_path):
    """The arithmetic teacher's velocity is linear in z: its 32 steps are a closed form that 4 of Adams' come near."""

    def latents(name, steps, solver):
        config = replace(corpora.CONFIG, num_inference_steps=steps, solver=solver)
        dataset = CorpusDataset(corpora.draw(tmp_path / name, config, teacher_steps=32))
        return torch.stack([dataset[i]["latent"] for i in range(3)])

    own = latents("own", 32, "teacher")
    few, adams = latents("few", 4, "teacher"), latents("adams", 4, "adams")
    assert (adams - own).std() < 0.3 * (few - own).std()


def test_adams_with_more_steps_than_the_teacher_is_refused(corpora, tmp_path):
    config = replace(corpora.CONFIG, num_inference_steps=9, solver="adams")
    with pytest.raises(UserError, match="num_inference_steps=9 is more than the teacher's own 8 steps"):
        corpora.draw(tmp_path / "corpus", config, teacher_steps=8)
    assert not (tmp_path / "corpus").exists()


def test_progress_speaks_on_stderr_only(corpora, tmp_path, capsys):
    corpora.draw(tmp_path / "corpus", progress=True)
    out, err = capsys.readouterr()
    assert out == "" and "11/11" in err and "pictures/s" in err


def test_the_real_pipeline_s_pictures_decode_from_their_latents(corpora, tiny_pipeline, tmp_path):
    from l2p.teachers import load_teacher

    teacher = load_teacher(tiny_pipeline)
    pictures = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        latents = teacher.pack(teacher.encode(pictures))
    pixels = patchify(pictures, teacher.geometry.token_pixels).flatten(0, 2)
    noise = torch.randn(200, pixels.shape[1], generator=torch.Generator().manual_seed(1))
    lift = fit_lift(
        torch.cat([pixels, noise]), torch.cat([latents.flatten(0, 2), noise[:, : latents.shape[-1]]])
    )
    config = CorpusConfig(num_pairs=3, num_inference_steps=2, batch_size=2, shard_size=2)
    folder = synthesize(
        teacher, lift, config, tmp_path / "corpus", height=64, width=64, guidance_scale=1.0, progress=False
    )
    sample = CorpusDataset(folder)[2]
    with torch.no_grad():
        assert np.array_equal(images.to_uint8(teacher.decode(sample["latent"][None]))[0], sample["image"])
