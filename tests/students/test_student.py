"""The student as a whole: equal to the lifted teacher at step zero, any size, any batch, any precision."""

from __future__ import annotations

import pytest
import torch

from l2p import flow
from l2p.lift import velocity_from_asymmetric
from l2p.patches import patchify, unpatchify
from l2p.recipe import TrainBlocks
from l2p.students.build import from_teacher, set_trainable


def noisy(batch: int = 2, height: int = 32, width: int = 48, seed: int = 0) -> torch.Tensor:
    return 0.8 * torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["linear", "patch"])
@pytest.mark.parametrize("size", [(32, 64), (80, 48)])
def test_step_zero_is_the_lifted_teacher(teacher, lift, captions, student_config, size, kind):
    """x_0 and velocity of the untrained student against the teacher's latent velocity, lifted in closed form."""
    student = from_teacher(teacher, lift, student_config(kind))
    x_t, t, conditioning = noisy(4, *size), torch.tensor([0.1, 0.4, 0.8, 1.0]), captions([5, 40, 9, 33])
    with torch.no_grad():
        tokens = patchify(x_t, 16)
        z_t = teacher.unpack(lift.to_latent(tokens, t))
        u_z = teacher.velocity(z_t, lift.latent_time(t), conditioning)
        x_0 = unpatchify(lift.x_0(tokens, teacher.pack(u_z), t), 16)
        assert u_z.std() > 0.1
        torch.testing.assert_close(student(x_t, t, conditioning), x_0, atol=1e-4, rtol=1e-4)
        u = (x_t - x_0) / t[:, None, None, None]
        torch.testing.assert_close(student.velocity(x_t, t, conditioning), u, atol=1e-3, rtol=1e-4)


def test_step_zero_draws_the_teachers_trajectory(teacher, lift, captions, student_config):
    """Sampling in pixels, then projecting, equals sampling the teacher in latents at the mapped times."""
    student = from_teacher(teacher, lift, student_config("linear"))
    eps, conditioning, steps = noisy(2), captions([5, 9]), 4
    times = lift.latent_time(torch.linspace(1, 0, steps + 1))
    with torch.no_grad():
        eps_z = teacher.unpack(lift.noise_to_latent(patchify(eps, 16)))
        z_0 = flow.euler(lambda z, t: teacher.velocity(z, t, conditioning), eps_z, times)
        expected = unpatchify(lift.to_pixels(teacher.pack(z_0)), 16)
    torch.testing.assert_close(student.sample(eps, conditioning, steps), expected, atol=1e-4, rtol=1e-4)


def test_student_shares_nothing_with_its_teacher(teacher, lift, student_config):
    before = {name: tensor.clone() for name, tensor in teacher.transformer.state_dict().items()}
    student = from_teacher(teacher, lift, student_config("linear"))
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.fill_(7)
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.transformer.state_dict().items())
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_a_patch_that_is_not_the_teachers_is_refused(teacher, lift, student_config):
    with pytest.raises(ValueError, match="student.patch_size=16"):
        from_teacher(teacher, lift, student_config("linear", patch_size=32))


@pytest.mark.parametrize("size", [(8, 8), (8, 40), (24, 16), (40, 56), (48, 32)])
def test_any_size_that_is_a_multiple_of_eight(student, captions, size):
    with torch.no_grad():
        x_0 = student(noisy(2, *size), torch.tensor([1.0, 0.5]), captions([5, 9]))
    assert x_0.shape == (2, 3, *size) and x_0.isfinite().all()


def test_sizes_between_patches_equal_the_wrapped_picture_cut(student, captions):
    x_t, t, conditioning = noisy(1, 24, 40), torch.tensor([0.7]), captions([5])
    wrapped = torch.cat([x_t, x_t[:, :, :8]], dim=2)
    wrapped = torch.cat([wrapped, wrapped[..., :8]], dim=3)
    with torch.no_grad():
        assert torch.equal(student(x_t, t, conditioning), student(wrapped, t, conditioning)[..., :24, :40])


def test_a_picture_does_not_depend_on_its_batch(student, captions):
    x_t, t, conditioning = noisy(3), torch.tensor([1.0, 0.6, 0.2]), captions([5, 40, 12])
    with torch.no_grad():
        together = student(x_t, t, conditioning)
        for i in range(3):
            alone = student(x_t[i : i + 1], t[i : i + 1], conditioning[i : i + 1])
            torch.testing.assert_close(alone, together[i : i + 1], atol=2e-5, rtol=1e-4)


def test_bf16_autocast_is_close_to_fp32(student, captions):
    x_t, t, conditioning = noisy(2), torch.tensor([1.0, 0.3]), captions([5, 9])
    with torch.no_grad():
        exact = student(x_t, t, conditioning)
        with torch.autocast("cpu", torch.bfloat16):
            rough = student(x_t, t, conditioning)
    assert rough.dtype == torch.float32
    assert (rough - exact).norm() / exact.norm() < 0.02


def test_bf16_weights_are_close_to_fp32(student, captions):
    x_t, t, conditioning = noisy(2), torch.tensor([1.0, 0.3]), captions([5, 9])
    with torch.no_grad():
        exact = student(x_t, t, conditioning)
        rough = student.to(torch.bfloat16)(x_t.bfloat16(), t, conditioning)
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - exact).norm() / exact.norm() < 0.04


def test_gradient_checkpointing_gives_the_same_gradients(student, captions):
    x_t, t, conditioning = noisy(2), torch.tensor([1.0, 0.3]), captions([5, 40])
    gradients = []
    for enabled in (False, True):
        student.zero_grad()
        student.set_gradient_checkpointing(enabled)
        student(x_t, t, conditioning).square().mean().backward()
        gradients.append(
            {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}
        )
    assert len(gradients[0]) == len(list(student.parameters()))
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-8, rtol=1e-6, msg=name)


def test_gradients_flow_to_the_picture(student, captions):
    x_t = noisy(1).requires_grad_()
    student(x_t, torch.tensor([0.5]), captions([5])).square().sum().backward()
    assert (x_t.grad.abs().sum(1) > 0).all()


def test_sample_is_euler_on_even_times(student, captions):
    eps, conditioning = noisy(2), captions([5, 9])
    with torch.no_grad():
        one = student(eps, torch.ones(2), conditioning)
        times = torch.linspace(1, 0, 4)
        three = flow.euler(lambda x, t: student.velocity(x, t, conditioning), eps, times)
    assert torch.equal(student.sample(eps, conditioning), one)
    done: list[int] = []
    torch.testing.assert_close(
        student.sample(eps, conditioning, 3, progress=done.append), three, atol=1e-4, rtol=1e-4
    )
    assert done == [1, 2, 3]


def test_asymmetric_velocity_is_the_same_prediction(student, captions):
    x_t, t, conditioning = noisy(2), torch.tensor([1.0, 0.3]), captions([5, 9])
    with torch.no_grad():
        u_a = patchify(student.asymmetric_velocity(x_t, t, conditioning), 16)
        u = velocity_from_asymmetric(patchify(x_t, 16), u_a, t, student.basis)
        expected = student.velocity(x_t, t, conditioning)
    torch.testing.assert_close(unpatchify(u, 16), expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("train_blocks", "frozen_layers"),
    [
        ("all", []),
        (TrainBlocks(1, 1), [1]),
        (TrainBlocks(0, 0), [0, 1, 2]),
        (TrainBlocks(2, 2), []),
        (TrainBlocks(0, 9), []),
    ],
)
def test_only_the_middle_layers_freeze(student, train_blocks, frozen_layers):
    trainable = set_trainable(student, train_blocks)
    for name, parameter in student.named_parameters():
        frozen = any(name.startswith(f"core.transformer.layers.{i}.") for i in frozen_layers)
        assert parameter.requires_grad != frozen, name
    assert trainable == sum(p.numel() for p in student.parameters() if p.requires_grad)


def test_a_frozen_core_leaves_only_the_head(student, captions):
    set_trainable(student, "none")
    student(noisy(1), torch.ones(1), captions([5])).sum().backward()
    assert all(p.grad is None for p in student.core.parameters())
    assert any(p.grad is not None for p in student.head.parameters())


def test_max_timestep_bounds_the_time_of_pure_noise_only(teacher, lift, captions, student_config):
    plain = from_teacher(teacher, lift, student_config("linear"))
    told = from_teacher(teacher, lift, student_config("linear", max_timestep=0.9))
    assert told.spec.max_timestep == 0.9
    x_t, conditioning = noisy(1), captions([9])
    early, late = torch.tensor([0.2]), torch.ones(1)
    with torch.no_grad():
        assert torch.equal(plain(x_t, early, conditioning), told(x_t, early, conditioning))
        # The lifted teacher's step from this noise as if it were at 0.9.
        z_t = lift.to_latent(patchify(x_t, 16), late)
        u_z = teacher.pack(teacher.velocity(teacher.unpack(z_t), torch.tensor([0.9]), conditioning))
        expected = unpatchify(lift.to_pixels(z_t - 0.9 * u_z), 16)
        torch.testing.assert_close(told(x_t, late, conditioning), expected, atol=1e-4, rtol=1e-4)
        assert (told(x_t, late, conditioning) - plain(x_t, late, conditioning)).abs().max() > 0.01


def test_noise_outside_the_lifts_span_may_be_left_out(teacher, lift, captions, student_config, randomised):
    """Two noises that agree inside the span give one picture; below t = 1 the student sees everything."""
    student = randomised(from_teacher(teacher, lift, student_config("patch", project_noise=True)))
    tokens, basis = patchify(noisy(1), 16), lift.basis.float()
    outside = patchify(noisy(1, seed=1), 16)
    outside = outside - outside @ basis @ basis.T
    one, other = unpatchify(tokens, 16), unpatchify(tokens + outside, 16)
    assert (one - other).abs().max() > 0.5
    with torch.no_grad():
        pictures = [student(x, torch.ones(1), captions([9])) for x in (one, other)]
        torch.testing.assert_close(*pictures, atol=1e-4, rtol=0)
        earlier = [student(x, torch.full((1,), 0.9), captions([9])) for x in (one, other)]
        assert (earlier[0] - earlier[1]).abs().max() > 0.01


def test_a_random_core_is_not_the_teacher_s_and_draws_finite_pictures(
    teacher, lift, captions, student_config
):
    torch.manual_seed(0)
    student = from_teacher(teacher, lift, student_config("patch", random_core=True))
    own, other = student.core.transformer.state_dict(), teacher.transformer.state_dict()
    same = [n for n in own.keys() & other.keys() if own[n].ndim == 2 and torch.equal(own[n], other[n])]
    assert {n for n in same if "pad_token" not in n} == set()
    assert student.sample(torch.randn(1, 3, 64, 64), captions([5]), 1).isfinite().all()


def test_what_tells_the_step_trains_in_a_frozen_core_too(teacher, lift, student_config):
    student = from_teacher(teacher, lift, student_config("patch", interval=True, train_blocks="none"))
    trained = {n for n, p in student.core.named_parameters() if p.requires_grad}
    assert (
        trained == {n for n, _ in student.core.named_parameters() if n.startswith("span_embedder.")} != set()
    )
