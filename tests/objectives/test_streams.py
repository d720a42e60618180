"""A term's random numbers are its own: another term, or another order, leaves them as they are."""

from __future__ import annotations

import torch


def _drawn(ctx, names):
    found = {}
    for name in names:
        with ctx.purpose(name):
            found[name] = (ctx.randn(4, 3), ctx.rand(4), ctx.random_subset(0.5)[0])
    return found


def _equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_order_and_company_change_nothing(context):
    new = lambda: context(lambda x, t: torch.zeros_like(x))  # noqa: E731
    alone, both, turned = (
        _drawn(new(), ["pairs"]),
        _drawn(new(), ["pairs", "flow"]),
        _drawn(new(), ["flow", "pairs"]),
    )
    assert _equal(alone["pairs"], both["pairs"]) and _equal(both["pairs"], turned["pairs"])
    assert _equal(both["flow"], turned["flow"])
    assert not torch.equal(both["flow"][0], both["pairs"][0])


def test_a_stream_goes_on_where_it_stood(context):
    ctx = context(lambda x, t: torch.zeros_like(x))
    with ctx.purpose("pairs"):
        first = ctx.randn(4)
    with ctx.purpose("flow"):
        ctx.randn(4)
    with ctx.purpose("pairs"):
        assert not torch.equal(first, ctx.randn(4))


def test_the_picture_s_time_does_not_depend_on_who_asks_first(context):
    times = []
    for name in ("pairs", "drift", "energy"):
        ctx = context(lambda x, t: torch.zeros_like(x), num_steps=16)
        with ctx.purpose(name):
            ctx.randn(4)
            times.append(ctx.picture_time)
    assert len(set(times)) == 1


def test_a_critic_s_numbers_are_not_its_term_s(context):
    ctx = context(lambda x, t: torch.zeros_like(x))
    with ctx.purpose("adversarial"):
        term = ctx.randn(8)
    with ctx.purpose("adversarial/critic"):
        assert not torch.equal(term, ctx.randn(8))
