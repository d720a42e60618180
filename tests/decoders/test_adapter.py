"""The gate against its formula, and that nothing enters before training."""

from __future__ import annotations

import math

import torch

from l2p.decoders.adapter import LatentAdapter, SigmaGate


def test_a_gate_is_its_formula():
    torch.manual_seed(0)
    gate = SigmaGate(6, 4).double()
    with torch.no_grad():
        for parameter in gate.parameters():
            parameter.normal_()
    x, lq = torch.randn(2, 3, 6).double(), torch.randn(2, 3, 4).double()
    sigma = torch.tensor([0.0, 0.7]).double()
    with torch.no_grad():
        found = gate(x, lq, sigma)
    gate.requires_grad_(False)
    for b in range(2):
        for n in range(3):
            v = gate.value.weight @ lq[b, n] + gate.value.bias
            logit = gate.weigh.weight[0] @ torch.cat([x[b, n], v]) + gate.weigh.bias[0]
            weight = 1 / (1 + math.exp(-float(logit - gate.log_alpha.exp() * sigma[b])))
            torch.testing.assert_close(found[b, n], x[b, n] + weight * v, rtol=1e-6, atol=1e-6)


def test_nothing_enters_at_the_start_and_noise_closes_the_gate():
    torch.manual_seed(0)
    adapter = LatentAdapter(latent_dim=8, width=16, core_dim=12, num_gates=2)
    lq = adapter(torch.randn(2, 3, 5, 8))
    assert lq.shape == (2, 15, 16)
    x = torch.randn(2, 15, 12)
    assert torch.equal(adapter.gates[0](x, lq, torch.zeros(2)), x)
    torch.nn.init.normal_(adapter.gates[0].value.weight)
    told = [(adapter.gates[0](x, lq, torch.full((2,), s)) - x).abs().mean() for s in (0.0, 0.4, 0.8)]
    assert told[0] > 1.5 * told[1] > 4 * told[2] > 0
