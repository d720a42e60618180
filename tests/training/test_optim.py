import copy
import math

import pytest
import timm.optim.muon
import torch
from torch import nn

from l2p.bench.launches import Launches
from l2p.errors import UserError
from l2p.training.optim import GroupedMuon, build_optimizer, build_schedule, is_hidden_matrix


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(4, 8)
        self.hidden = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.pad_token = nn.Parameter(torch.randn(1, 8))
        self.conv = nn.Conv2d(1, 1, 3, padding=1)
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.out = nn.Linear(8, 2)

    def forward(self, x):
        h = self.norm(self.hidden(self.embed(x)) + self.pad_token)
        return self.out(self.conv(h[:, None, None])[:, 0, 0])


def train(network, optimizer, steps, first=0):
    losses = []
    for step in range(first, first + steps):
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
        loss = (network(x) - x[:, :2] * x[:, 2:]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_hidden_matrices_go_to_muon_and_the_rest_to_adamw():
    network = Network()
    optimizer = build_optimizer(network, "muon", lr=1e-3, weight_decay=0.1)
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert groups.keys() == {id(p) for p in network.parameters() if p.requires_grad}
    assert [id(p) for g in optimizer.param_groups if g.get("use_muon") for p in g["params"]] == [
        id(network.hidden.weight)
    ]
    decays = {key: group["weight_decay"] for key, group in groups.items()}
    assert decays[id(network.embed.weight)] == decays[id(network.conv.weight)] == 0.1
    assert decays[id(network.hidden.weight)] == 0.1
    assert (
        decays[id(network.norm.weight)] == decays[id(network.pad_token)] == decays[id(network.out.bias)] == 0
    )


def test_what_is_no_hidden_matrix_trains_as_by_torchs_adamw():
    torch.manual_seed(0)
    network = Network()
    network.hidden.requires_grad_(False)
    twin = copy.deepcopy(network)
    optimizer = build_optimizer(network, "muon", lr=1e-2, weight_decay=0.1)
    other = build_optimizer(twin, "adamw", lr=1e-2, weight_decay=0.1)
    assert isinstance(other, torch.optim.AdamW)
    assert train(network, optimizer, 5) == pytest.approx(train(twin, other, 5), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "hidden"),
    [
        ("core.transformer.layers.3.attention.to_out.0.weight", True),
        ("core.transformer.layers.3.feed_forward.w2.weight", True),
        ("core.transformer.all_x_embedder.16-1.weight", False),
        ("core.transformer.t_embedder.mlp.0.weight", False),
        ("head.blocks.0.qkv.weight", True),
        ("head.embed.weight", False),
        ("head.out.weight", False),
    ],
)
def test_which_layers_are_hidden(name, hidden):
    assert is_hidden_matrix(name, torch.zeros(8, 8)) is hidden


@pytest.mark.parametrize("shape", [(32, 64), (32, 16, 2, 2)])
def test_muon_update_is_orthogonal_and_has_the_size_of_an_adamw_update(shape):
    network = nn.Module()
    network.hidden = nn.Module()
    network.hidden.weight = weight = nn.Parameter(torch.zeros(shape))
    optimizer = build_optimizer(network, "muon", lr=1.0, weight_decay=0.0)
    weight.grad = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    values = torch.linalg.svdvals(weight.detach().flatten(1))
    assert values.min() > 0.5 * values.max()  # the gradient's own were spread wider: it was orthogonalised
    own = torch.linalg.svdvals(weight.grad.flatten(1))
    assert own.min() < 0.3 * own.max()
    assert weight.detach().square().mean().sqrt() == pytest.approx(0.2, rel=0.2)


def test_a_muon_step_is_torchs_own():
    torch.manual_seed(1)
    network = nn.Sequential(nn.Linear(12, 20, bias=False))
    twin = copy.deepcopy(network)
    optimizer = build_optimizer(network, "muon", lr=0.01, weight_decay=0.1)
    settings = {"momentum": 0.95, "nesterov": True, "adjust_lr_fn": "match_rms_adamw"}
    other = torch.optim.Muon(twin.parameters(), lr=0.01, weight_decay=0.1, **settings)
    for step in range(3):
        for net, optim in ((network, optimizer), (twin, other)):
            net[0].weight.grad = torch.randn(20, 12, generator=torch.Generator().manual_seed(step))
            optim.step()
    assert (network[0].weight - twin[0].weight).abs().max() < 2e-4  # bf16 rounds an update of 0.01 in 1/256


def test_muon_takes_matrices_of_a_shape_together(monkeypatch):
    """As timm does one by one, to the rounding of a batch; on a GPU in a fifth of the launches and fewer."""
    monkeypatch.setattr("l2p.training.optim.has_fast_bf16", lambda device: False)
    convolution = nn.Conv2d(6, 8, 3, bias=False)
    network = nn.Sequential(
        *(nn.Linear(8, 6, bias=False) for _ in range(16)), *(nn.Linear(6, 8) for _ in range(8)), convolution
    )
    counts, results = [], []
    for together in (True, False):
        net = copy.deepcopy(network)
        optimizer = build_optimizer(net, "muon", lr=0.1, weight_decay=0.1)
        assert isinstance(optimizer, GroupedMuon)
        if not together:
            monkeypatch.setattr("l2p.training.optim.is_sharded", lambda parameter: True)
        for step in range(3):
            generator = torch.Generator().manual_seed(step)
            for parameter in net.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
                parameter.grad = parameter.grad if parameter.ndim > 1 else None
            with Launches("cpu") as launches:
                optimizer.step()
        counts.append(launches.total)
        results.append(net)
    for a, b in zip(*(net.parameters() for net in results), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert 5 * counts[0] < counts[1], counts


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_state_round_trips_to_the_last_bit(kind, tmp_path):
    torch.manual_seed(0)
    network = Network()
    optimizer = build_optimizer(network, kind, lr=1e-2)
    first = train(network, optimizer, 4)
    twin = copy.deepcopy(network)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    resumed = build_optimizer(twin, kind, lr=1e-2)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for both in (optimizer, resumed):
        build_schedule(both, 100).step_update(50)
    assert resumed.param_groups[0]["lr"] == pytest.approx(5e-3)
    assert train(network, optimizer, 4, first=4) == train(twin, resumed, 4, first=4)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), twin.parameters(), strict=True))
    assert first[-1] != first[0]


def test_state_of_another_kind_is_refused():
    network = Network()
    state = build_optimizer(network, "adamw").state_dict()
    with pytest.raises(ValueError, match="parameter group"):
        build_optimizer(network, "muon").load_state_dict(state)


def test_mistakes_are_told():
    with pytest.raises(UserError, match="nothing to train"):
        build_optimizer(nn.Linear(2, 2).requires_grad_(False))
    with pytest.raises(UserError, match="'sgd'; expected 'muon' or 'adamw'"):
        build_optimizer(nn.Linear(2, 2), "sgd")


def test_schedule():
    """A linear warm-up that never gives 0, then half a cosine; the same whatever step was asked for before."""

    def factor(step, total, warmup):
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))

    optimizer = build_optimizer(Network(), "muon", lr=0.02)
    for total, warmup in ((103, 3), (50, 0), (2, 1), (20, 20)):
        schedule = build_schedule(optimizer, total, warmup)
        for step in (*range(total), 0, total - 1):
            schedule.step_update(step)
            expected = 0.02 * factor(step, total, warmup)
            assert all(g["lr"] == pytest.approx(expected, rel=1e-9) for g in optimizer.param_groups)


def test_a_constant_rate_is_the_same_for_a_longer_run_until_it_decays():
    def rates(total: int) -> list[float]:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
        schedule = build_schedule(optimizer, total, warmup_steps=9, decay_steps=20)
        seen = []
        for step in range(total):
            schedule.step_update(step)
            seen.append(optimizer.param_groups[0]["lr"])
        return seen

    short, long = rates(100), rates(500)
    assert short[:80] == long[:80]
    assert short[0] == pytest.approx(0.2) and short[4] == 1.0 and short[9] == short[80] == 2.0
    assert short[90] == 1.0 and short[99] == pytest.approx(0.1)


@pytest.mark.parametrize("fast", [True, False])
def test_newton_schulz_runs_in_bf16_only_where_the_device_computes_it(monkeypatch, fast):
    monkeypatch.setattr("l2p.training.optim.has_fast_bf16", lambda device: fast)
    torch.manual_seed(0)
    layer = nn.Linear(6, 6, bias=False)
    start = layer.weight.detach().clone()
    layer.weight.grad = torch.randn(6, 6)
    original = timm.optim.muon.muon
    build_optimizer(layer, "muon", 1.0, 0.0).step()
    assert timm.optim.muon.muon is original
    # The update is a multiple of U S V with singular values near 1, computed here in float64 by the same quintic.
    x = layer.weight.grad.double()
    x = x / x.norm()
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    step = (start - layer.weight.detach()).double()
    error = (step / step.norm() - x / x.norm()).norm()
    assert 1e-4 < error < 3e-2 if fast else error < 1e-5
