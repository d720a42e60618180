from types import SimpleNamespace

import numpy as np
import pytest
import torch

from l2p.noise import GENERATORS, pixel_noise
from l2p.teachers import Conditioning
from l2p.training import data as data_module
from l2p.training.data import DistillDataModule, PairNoise, StepSampler, derive_seed, step_generator


def test_batches_are_a_function_of_seed_stage_and_step():
    def sampler(seed=0, stage="one_step", start=0):
        return list(StepSampler(range(7), 3, seed, stage, 20, start))

    whole = sampler()
    assert len(whole) == 20
    assert sampler(start=11) == whole[11:]
    assert StepSampler(range(7), 3, 0, "one_step", 20).batch(13) == whole[13]
    assert sampler(seed=1) != whole
    assert sampler(stage="match") != whole
    assert len(StepSampler(range(7), 3, 0, "one_step", 20, 11)) == 20  # the whole stage, as Lightning counts


@pytest.mark.parametrize("batch_size", [1, 3, 7, 20])
def test_no_sample_is_lost_or_doubled_in_an_epoch(batch_size):
    sampler = StepSampler(range(7), batch_size, 0, "one_step", 21)
    stream = [index for batch in sampler for index in batch]
    assert all(len(batch) == batch_size for batch in sampler)
    epochs = [stream[i : i + 7] for i in range(0, len(stream) - 6, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1  # each epoch has its own order


def test_seeds_differ_and_never_change():
    seeds = {derive_seed(s, stage, n) for s in range(3) for stage in ("transfer", "match") for n in range(50)}
    assert len(seeds) == 300
    assert (
        derive_seed(0, "one_step", 0) == 1595817914459285377
    )  # another value would change every run's results
    assert torch.equal(*(torch.randn(3, generator=step_generator(0, "match", 4)) for _ in range(2)))


class Teacher:
    def __init__(self):
        self.encoded = []

    text_encoder = SimpleNamespace(park=lambda: None)

    def encode_prompts(self, prompts):
        self.encoded += prompts
        return Conditioning(torch.zeros(len(prompts), 2, 3), torch.full((len(prompts),), 2))


def items(count=5):
    rng = np.random.default_rng(0)
    return [
        {
            "image": rng.integers(0, 256, (16, 16, 3), dtype=np.uint8),
            "latent": torch.full((4, 2, 2), float(i)),
            "seed": 100 + i,
            "prompt": f"prompt {i % 2}",
        }
        for i in range(count)
    ]


BASIS = torch.linalg.qr(torch.randn(768, 12, generator=torch.Generator().manual_seed(0)))[0]


@pytest.mark.parametrize("generator", GENERATORS)
def test_a_batch_has_the_noise_of_each_pairs_seed(generator):
    noise = PairNoise(generator, BASIS)
    batch = noise.collate(items(3))
    assert batch["images"].shape == (3, 3, 16, 16)
    assert batch["images"].min() >= -1 and batch["images"].max() <= 1
    assert ("noise" in batch) == (generator == "mt19937")  # drawn by the workers, the other on the device
    assert torch.equal(noise.of(batch), pixel_noise(generator, [100, 101, 102], 16, 16, BASIS))
    assert batch["latents"][2].eq(2.0).all()


def test_a_small_corpus_is_kept_in_memory(monkeypatch):
    kept = data_module.in_memory(items())
    assert isinstance(kept, list) and len(kept) == 5
    monkeypatch.setattr(data_module, "RAM_BUDGET", 1000)
    large = tuple(items())
    assert data_module.in_memory(large) is large


def test_held_out_pairs_are_never_drawn_and_prompts_are_encoded_once_in_their_order():
    teacher = Teacher()
    data = DistillDataModule(
        items(),
        teacher,
        batch_size=2,
        seed=0,
        stage="s",
        total_steps=30,
        held_out=2,
        noise=PairNoise("philox", BASIS),
    )
    data.setup("fit")
    assert teacher.encoded == ["prompt 0", "prompt 1"]
    seen = {int(v) for batch in data.train_dataloader() for v in batch["latents"][:, 0, 0, 0]}
    assert seen == {0, 1, 2}
