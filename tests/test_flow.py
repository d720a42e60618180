"""Identities of the flow, in fp64, and noise that is the same on every machine."""

from __future__ import annotations

import hashlib
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from l2p import flow

B = 3
T = torch.tensor([0.2, 0.7, 1.0], dtype=torch.float64)


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(5)
    x_0, eps = torch.randn(2, B, 3, 4, 6, dtype=torch.float64, generator=generator)
    return x_0, eps


def close(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


def test_noise_is_the_recorded_one():
    drawn = flow.noise([7, 0], 3, 16, 16)
    assert drawn.dtype == torch.float32 and drawn.shape == (2, 3, 16, 16)
    digest = hashlib.sha256(drawn[0].numpy().astype("<f4").tobytes()).hexdigest()
    assert digest == "9ad7c44cd3b989ff273c477f8b47452c99ef4af09a19eea7901f30bff36daf77"


def test_noise_is_box_muller_of_the_generators_uniforms():
    """Independent truth: the formula, number by number, in Python's own arithmetic; an odd count of values."""
    drawn = flow.noise([11], 1, 3, 5).flatten().tolist()
    uniform = torch.rand(16, dtype=torch.float64, generator=torch.Generator().manual_seed(11)).tolist()
    radius = [math.sqrt(-2 * math.log(1 - u)) for u in uniform[:8]]
    angle = [2 * math.pi * u for u in uniform[8:]]
    expected = [r * math.cos(a) for r, a in zip(radius, angle, strict=True)]
    expected += [r * math.sin(a) for r, a in zip(radius, angle, strict=True)]
    assert drawn == pytest.approx(expected[:15], rel=1e-6)


def test_noise_of_a_seed_depends_on_nothing_else():
    alone = flow.noise([3], 3, 8, 8)
    torch.rand(100)
    among = flow.noise([9, 3, 3], 3, 8, 8)
    assert torch.equal(among[1:2], alone) and torch.equal(among[2:], alone)
    assert not torch.equal(among[0], among[1])


def test_noise_is_white():
    n = 3 * 512 * 512
    eps = flow.noise([1], 3, 512, 512).double()
    assert abs(eps.mean()) < 4 / math.sqrt(n)
    assert abs(eps.var() - 1) < 4 * math.sqrt(2 / n)
    assert abs(eps.pow(4).mean() - 3) < 4 * math.sqrt(96 / n)
    for axis in (1, 2, 3):
        assert abs((eps * eps.roll(1, axis)).mean()) < 4 / math.sqrt(n)


@given(height=st.integers(1, 9), width=st.integers(1, 9), data=st.data())
@settings(max_examples=25, deadline=None)
def test_noise_by_rows_is_the_whole_noise(height, width, data):
    whole = flow.noise([4, 5], 3, height, width)
    drawn = flow.Noise.of_seeds([4, 5], 3, height, width)
    start = data.draw(st.integers(0, height - 1))
    stop = data.draw(st.integers(start + 1, height))
    assert torch.equal(drawn.rows(start, stop), whole[:, :, start:stop])


def test_noise_of_many_strides_is_one_stream():
    """More numbers than a stride: the same as Box-Muller of one single draw; rows far down as from the whole."""
    height, width = 300, 400
    half = 3 * height * width // 2
    assert half > flow.STRIDE
    uniform = torch.rand(2 * half, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    radius, angle = (-2 * (1 - uniform[:half]).log()).sqrt(), 2 * math.pi * uniform[half:]
    expected = torch.cat([radius * angle.cos(), radius * angle.sin()]).view(3, height, width)
    drawn = flow.Noise.of_seeds([2], 3, height, width)
    torch.testing.assert_close(drawn.rows(0, height)[0].double(), expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(drawn.rows(290, 300), drawn.rows(0, height)[:, :, 290:])


def test_noise_from_a_shared_generator_goes_on_where_it_was():
    one = torch.Generator().manual_seed(6)
    both = flow.noise_from([one, one], 3, 4, 4)
    other = torch.Generator().manual_seed(6)
    assert torch.equal(both[:1], flow.noise_from([other], 3, 4, 4))
    assert torch.equal(both[1:], flow.noise_from([other], 3, 4, 4))
    assert torch.equal(one.get_state(), other.get_state())


def test_ends_and_middle_of_the_path(pair):
    x_0, eps = pair
    close(flow.add_noise(x_0, eps, 0.0), x_0)
    close(flow.add_noise(x_0, eps, 1.0), eps)
    close(flow.add_noise(x_0, eps, T)[1], 0.3 * x_0[1] + 0.7 * eps[1])


def test_velocity_and_x_0_are_each_others_inverse(pair):
    x_0, eps = pair
    x_t, u = flow.add_noise(x_0, eps, T), flow.velocity(x_0, eps)
    close(flow.x_0_from_velocity(x_t, u, T), x_0)
    close(flow.velocity_from_x_0(x_t, x_0, T), u)
    close(flow.velocity_from_x_0(eps, x_0, 1.0), u)


def test_t_min_guards_only_the_division(pair):
    x_0, eps = pair
    x_t = flow.add_noise(x_0, eps, 0.01)
    close(flow.velocity_from_x_0(x_t, x_0, 0.01, t_min=0.05), flow.velocity(x_0, eps) * 0.01 / 0.05)
    assert flow.velocity_from_x_0(x_0, x_0, 0.0).abs().max() == 0


@settings(max_examples=50, deadline=None)
@given(st.floats(0, 1), st.floats(0.1, 12))
def test_shifted_time(t, shift):
    moved = flow.shift_time(t, shift)
    assert 0 <= moved <= 1 + 1e-12
    assert flow.shift_time(moved, 1 / shift) == pytest.approx(t, abs=1e-9)
    assert moved == pytest.approx(shift * t / (1 + (shift - 1) * t), rel=1e-12)
    assert flow.shift_time(0, shift) == 0 and flow.shift_time(1, shift) == 1


def test_euler_with_a_constant_velocity_is_exact(pair):
    x_0, eps = pair
    done = []
    times = torch.linspace(1, 0, 8, dtype=torch.float64)
    drawn = flow.euler(lambda x, t: eps - x_0, eps, times, progress=done.append)
    close(drawn, x_0)
    assert done == list(range(1, 8))


def test_euler_takes_the_steps_of_the_closed_form():
    """dx/dt = x from 1 to 0 in n even steps gives (1 - 1/n)^n."""
    seen = []

    def velocity(x, t):
        seen.append(t.clone())
        return x

    x = flow.euler(
        velocity, torch.ones(2, 1, dtype=torch.float64), torch.linspace(1, 0, 11, dtype=torch.float64)
    )
    close(x, torch.full((2, 1), 0.9**10, dtype=torch.float64))
    assert all(t.shape == (2,) for t in seen)
    close(torch.stack(seen)[:, 0], 1 - torch.arange(10, dtype=torch.float64) / 10)


def grown(n, solver, **options):
    """dx/dt = x from 1 to 0, from x = 1: exp(-1), and (1 - 1/n)^n by Euler."""
    times = torch.linspace(1, 0, n + 1, dtype=torch.float64)
    return solver(lambda x, t: x, torch.ones(1, 1, dtype=torch.float64), times, **options).item()


def test_adams_bashforth_is_of_second_order():
    errors = [grown(n, flow.adams_bashforth) - math.exp(-1) for n in (20, 40, 80)]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.05)


def test_adams_bashforth_of_uneven_steps_is_exact_where_the_velocity_is_linear_in_time_but_for_its_first_step():
    """du/dt = 1: the first step leaves out h^2 / 2, the others nothing."""
    times = torch.tensor([1.0, 0.9, 0.5, 0.0], dtype=torch.float64)
    done = []
    x = flow.adams_bashforth(
        lambda x, t: t[:, None], torch.zeros(1, 1, dtype=torch.float64), times, progress=done.append
    )
    assert x.item() == pytest.approx(-0.5 - 0.1**2 / 2) and done == [1, 2, 3]


def test_adams_bashforth_ends_where_many_steps_of_euler_end():
    many = grown(20, flow.euler)
    assert grown(5, flow.adams_bashforth, euler_steps=5) == grown(5, flow.euler)
    off = abs(grown(5, flow.adams_bashforth, euler_steps=20) - many)
    assert off < 0.5 * abs(grown(5, flow.adams_bashforth) - many) < 0.5 * abs(grown(5, flow.euler) - many)
    with pytest.raises(ValueError, match="at least 5"):
        grown(5, flow.adams_bashforth, euler_steps=4)


def test_half_precision_pictures_keep_their_dtype_and_a_fine_time():
    x = torch.ones(2, 3, 4, 4, dtype=torch.bfloat16)
    t = torch.tensor([0.1, 0.9])
    assert (
        flow.time_like(t, x).shape == (2, 1, 1, 1) and flow.time_like(t.bfloat16(), x).dtype == torch.float32
    )
    assert flow.add_noise(x, x, t).dtype == torch.bfloat16
    assert flow.x_0_from_velocity(x, x, t).dtype == torch.bfloat16
    assert flow.velocity_from_x_0(x, x, t).dtype == torch.bfloat16
    assert flow.euler(lambda x, t: x, x, torch.tensor([1.0, 0.5, 0.0])).dtype == torch.bfloat16
