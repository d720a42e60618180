"""Figures of many pictures, and of more in one batch than are kept; clocks that wait; skips that say so."""

from __future__ import annotations

import importlib
import warnings
from types import SimpleNamespace

import pytest
import torch

from l2p.errors import UserError, UserNotice
from l2p.evaluation import figures, memory
from l2p.evaluation.figures import Figures


class _Judge:
    reference_mean, reference_covariance = torch.zeros(2), torch.eye(2)

    def judge(self, images):
        return images.mean((2, 3))[:, :2], torch.zeros(len(images), 7, dtype=torch.int64)


@pytest.mark.parametrize("batches", [[6], [3, 3], [1, 5]])
def test_a_batch_larger_than_what_is_kept_is_cut_not_dropped(monkeypatch, batches):
    monkeypatch.setattr(figures, "KEPT", 4)
    found, images = Figures(_Judge(), (8,)), torch.rand(6, 3, 32, 32)
    for part in images.split(batches):
        found.update(part)
    assert torch.equal(torch.cat(found.vectors), images.mean((2, 3))[:4, :2])
    values = found.distances(found)
    assert values["distance_images"] == 4 and values["frechet_interval"][0] <= values["frechet_interval"][1]


def test_fewer_pictures_than_are_kept_need_no_remark():
    found = Figures(_Judge(), (8,))
    found.update(torch.rand(6, 3, 32, 32))
    assert "distance_images" not in found.distances(found)


def test_a_second_feature_space_that_is_missing_says_so(monkeypatch):
    def refuse(*args):
        raise UserError("the teacher x has no VAE encoder with down blocks")

    module = importlib.import_module("l2p.evaluation.evaluate")
    monkeypatch.setattr(module, "load_features", refuse)
    with pytest.warns(UserNotice, match="left out: the teacher x has no VAE encoder"):
        assert module.encoder_vectors(None, torch.float32) is None


@pytest.mark.skipif(not memory.STATUS.is_file(), reason="needs /proc")
def test_a_memory_that_was_not_measured_says_why(monkeypatch, tmp_path):
    failed = SimpleNamespace(returncode=1, stdout="", stderr="Traceback\nRuntimeError: boom\n")
    monkeypatch.setattr(memory.subprocess, "run", lambda *args, **kwargs: failed)
    with pytest.warns(UserNotice, match="not measured: RuntimeError: boom"):
        assert memory.peak_memory((64, 64), torch.device("cpu"), torch.float32, student=tmp_path) is None


def test_the_clock_waits_for_the_gpu(monkeypatch):
    from l2p import runtime

    seen = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: seen.append(str(device)))
    runtime.synchronize("cpu")
    runtime.synchronize("cuda:0")
    assert seen == ["cuda:0"]


def test_stopping_early_is_timed_between_two_waits(monkeypatch):
    from l2p.decoders import early_stop

    seen = []
    monkeypatch.setattr(early_stop, "synchronize", lambda device: seen.append("wait"))

    def sample(*args):
        seen.append("sample")
        return torch.zeros(1, 16, 2, 2)

    geometry = SimpleNamespace(latent_shape=lambda h, w: (16, 2, 2))
    teacher = SimpleNamespace(
        geometry=geometry,
        device=torch.device("cpu"),
        times=lambda n, h, w: torch.linspace(1, 0, n + 1),
        encode_prompts=lambda prompts: None,
        sample=sample,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        early_stop.sample(teacher, "a lake", 0, 16, 16, 4, 1.0, 0.3)
    assert seen == ["wait", "sample", "wait"]
