from __future__ import annotations

import pytest
import torch
from torch import nn

from l2p.errors import UserError
from l2p.objectives.drift import DriftObjective, drift_field, drift_loss, pool_cells


def points(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("tau", [0.05, 0.5, 5.0])
def test_swapping_the_two_sides_flips_the_sign(tau):
    x, p, q = points(2, 7, 3), points(2, 9, 3, seed=1), points(2, 5, 3, seed=2) + 1
    assert torch.allclose(drift_field(x, p, q, tau), -drift_field(x, q, p, tau), atol=1e-12)


def test_the_field_is_the_double_sum_over_pairs():
    """Written out: V = sum_ij K+_i K-_j (y+_i - y-_j), K the geometric mean of row and column softmax."""
    x, p, q, tau = points(1, 4, 2), points(1, 3, 2, seed=1), points(1, 5, 2, seed=2), 0.7
    y = torch.cat([p, q], 1)[0]
    kernel = torch.tensor([[torch.exp(-(a - b).norm() / tau) for b in y] for a in x[0]], dtype=torch.float64)
    kernel = (kernel / kernel.sum(1, keepdim=True) * kernel / kernel.sum(0, keepdim=True)).sqrt()
    wanted = torch.zeros(4, 2, dtype=torch.float64)
    for b in range(4):
        for i in range(3):
            for j in range(5):
                wanted[b] += kernel[b, i] * kernel[b, 3 + j] * (p[0, i] - q[0, j])
    assert torch.allclose(drift_field(x, p, q, tau)[0], wanted, atol=1e-12)


def test_equal_distributions_do_not_drift():
    """At p = q the mean force over many draws is zero to its own standard error; with p moved it is not."""
    draws = 2000
    x = points(1, 6, 2).expand(draws, -1, -1)
    p, q = points(draws, 16, 2, seed=1), points(draws, 16, 2, seed=2)

    def z_score(field):
        return (field.mean(0) / (field.std(0) / draws**0.5)).abs()

    assert z_score(drift_field(x, p, q, 0.5)).max() < 4
    assert z_score(drift_field(x, p + 1, q, 0.5)).min() > 8


def test_a_point_does_not_push_itself():
    x, p = points(1, 5, 2), points(1, 4, 2, seed=1)
    field = drift_field(x, p, x, 0.5, self_pairs=True)
    kept = torch.arange(5) != 2
    y = torch.cat([p, x], 1)
    logits = -torch.cdist(x, y) / 0.5
    logits[:, range(5), range(4, 9)] = -torch.inf
    kernel = (logits.softmax(2) * logits.softmax(1)).sqrt()[0, 2]
    wanted = kernel[4:].sum() * kernel[:4] @ p[0] - kernel[:4].sum() * kernel[4:][kept] @ x[0, kept]
    assert torch.allclose(field[0, 2], wanted, atol=1e-12)


def test_the_loss_is_a_stopped_target_of_unit_force():
    """One temperature: the loss is the mean square of a force of RMS 1, the gradient points against the force."""
    x = points(3, 12, 4, dtype=torch.float32).requires_grad_()
    p = points(3, 10, 4, seed=1, dtype=torch.float32) + 2
    loss = drift_loss(x, p, (0.2,))
    assert loss.item() == pytest.approx(1.0, rel=1e-4)
    loss.backward()
    assert (x.grad.mean((0, 1)) < 0).all()  # the descent goes towards p
    assert torch.equal(torch.autograd.grad(drift_loss(x, p, (0.2,)), x)[0], x.grad)


def test_identical_samples_stay_finite():
    x = torch.ones(1, 4, 3, requires_grad=True)
    drift_loss(x, torch.ones(1, 4, 3), (0.02, 0.2)).backward()
    assert x.grad.isfinite().all()


def test_a_generator_drifts_to_two_gaussians():
    """200 steps of a small net; distance: 1-D Wasserstein between sorted samples and the mixture's own quantiles."""
    torch.manual_seed(0)
    mean, deviation, steps = 2.0, 0.5, 200
    net = nn.Sequential(nn.Linear(2, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))
    optimiser = torch.optim.Adam(net.parameters(), 2e-2)

    def target(n):
        return torch.randn(n, 1) * deviation + mean * (torch.randint(0, 2, (n, 1)) * 2.0 - 1)

    levels = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    grid = torch.linspace(-5, 5, 20_001, dtype=torch.float64)
    cdf = sum(torch.special.ndtr((grid - m) / deviation) for m in (-mean, mean)) / 2
    quantiles = grid[torch.searchsorted(cdf, levels)]

    def distance():
        with torch.no_grad():
            samples = net(torch.randn(4000, 2)).flatten().double().sort().values
        return (samples - quantiles).abs().mean().item()

    before = distance()
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 2e-2 * (1 - step / steps)
        optimiser.zero_grad()
        drift_loss(net(torch.randn(128, 2))[None], target(128)[None], (0.02, 0.05, 0.2)).backward()
        optimiser.step()
    assert before > 1.5
    assert distance() < 0.2  # 0.12 on average over seeds; a single bell of the same variance is 0.74 away


def test_cells_hold_the_mean_and_deviation_of_their_part():
    features = points(2, 3, 8, 6, dtype=torch.float32)
    whole_mean, whole_deviation, mean, deviation = pool_cells(features, (1, 2))
    assert torch.allclose(whole_mean[0], features.mean((2, 3)), atol=1e-5)
    assert torch.allclose(whole_deviation[0], features.std((2, 3), correction=0), atol=1e-3)
    assert mean.shape == (4, 2, 3)
    assert torch.allclose(mean[1], features[:, :, :4, 3:].mean((2, 3)), atol=1e-5)
    assert torch.allclose(deviation[2], features[:, :, 4:, :3].std((2, 3), correction=0), atol=1e-3)
    assert len(pool_cells(features[..., :1, :1], (4,))[0]) == 1  # a map smaller than the grid


def test_the_objective_pulls_the_student_s_pictures_to_the_teacher_s(context, teacher, lift):
    """Pictures one shade too dark: descending the loss brightens them."""
    step = context(None, count=8)
    picture = (step.batch.images - 0.4).requires_grad_()
    step.picture = picture
    objective = DriftObjective(teacher=teacher, lift=lift)
    assert not objective.state_dict() and not list(objective.parameters())
    loss = objective(step)["drift"]
    loss.backward()
    assert picture.grad.isfinite().all()
    assert ((-picture.grad) * 0.4).sum() > 0


def test_one_picture_is_too_few(context, teacher, lift):
    with pytest.raises(UserError, match="at least 2"):
        DriftObjective(teacher=teacher, lift=lift)(context(lambda x, t: x, count=1))


def test_teacher_features_are_the_tokens_after_a_main_block(tiny_pipeline):
    """Against a hook on diffusers' own layer, at the very latents and time."""
    from l2p import flow
    from l2p.features import Probe, load_features
    from l2p.teachers import load_teacher

    teacher, seen = load_teacher(tiny_pipeline), []
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    conditioning = teacher.encode_prompts(["a house", "snow"])
    with torch.no_grad():
        z = teacher.encode(images)
        eps = torch.randn(z.shape, generator=torch.Generator().manual_seed(1))
        t = torch.full((2,), 0.2)
        features = load_features("transformer@0,-1", teacher)
        found = features.maps(images, Probe(conditioning, t, eps))
        for layer in (teacher.transformer.layers[0], teacher.transformer.layers[-1]):
            layer.register_forward_hook(lambda *args: seen.append(args[2][:, :16]))
        teacher.velocity(flow.add_noise(z, eps, t), t, conditioning)
    assert all(torch.equal(f.flatten(2).transpose(1, 2), g) for f, g in zip(found, seen, strict=True))
    assert features.channels == [f.shape[1] for f in found]
    with pytest.raises(UserError, match="main blocks 0 to 2, got .3."):
        load_features("transformer@3", teacher).of_latents(z, Probe(conditioning, t, eps))


def test_drifting_in_teacher_features_moves_them_to_the_teacher_s(tiny_pipeline, lift, context):
    """Pictures too pale: a small step down the loss brings the mean features of the crowds nearer to each other."""
    from l2p.teachers import load_teacher

    teacher = load_teacher(tiny_pipeline)
    images = torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    objective = DriftObjective(teacher=teacher, lift=lift, features="transformer@0,1", grids=[1])
    assert not list(objective.parameters())

    def step(picture):
        made = context(lambda x, t: picture, images)
        made.teacher = teacher
        made.batch.latents = torch.zeros(6, 16, 8, 8)
        made.batch.conditioning = teacher.encode_prompts(list("abcdef"))
        return made

    def distance(picture):
        with torch.no_grad():
            pairs = zip(*objective._compare(step(picture), picture), strict=True)
            return sum((f.mean((0, 2, 3)) - g.mean((0, 2, 3))).norm().item() for f, g in pairs)

    picture = (images * 0.3).requires_grad_()
    objective(step(picture))["drift"].backward()
    assert all(p.grad is None for p in teacher.transformer.parameters())
    moved = picture.detach() - picture.grad * (0.01 * picture.detach().norm() / picture.grad.norm())
    assert distance(moved) < 0.98 * distance(picture.detach())


def test_wrong_combinations_are_refused_before_anything_is_loaded():
    from l2p.objectives import check_combinations
    from l2p.recipe import Recipe, StageConfig

    with pytest.raises(UserError, match="batch_size of at least 2, got 1"):
        check_combinations(StageConfig(batch_size=1, objectives={"drift": {}}), Recipe(name="x"))
    wrong = {"drift": {"features": "transformer", "feature_scale": 0.5}}
    with pytest.raises(UserError, match="feature_scale is of pictures"):
        check_combinations(StageConfig(objectives=wrong), Recipe(name="x"))
    with pytest.raises(UserError, match="no picture for encoder: set features: transformer"):
        check_combinations(StageConfig(objectives={"drift": {"space": "latents"}}), Recipe(name="x"))
