import copy

import pytest
import torch
from torch import nn

from l2p.errors import UserError
from l2p.training.optim import build_optimizer, is_hidden_matrix, lr_scale, set_lr


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
    optimizer = build_optimizer(network.named_parameters(), "muon", lr=1e-3, weight_decay=0.1)
    muon, adamw = optimizer.optimizers
    assert isinstance(muon, torch.optim.Muon)
    assert [id(p) for g in muon.param_groups for p in g["params"]] == [id(network.hidden.weight)]
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in network.parameters() if p.requires_grad}
    decays = {id(p): group["weight_decay"] for group in adamw.param_groups for p in group["params"]}
    assert decays[id(network.embed.weight)] == decays[id(network.conv.weight)] == 0.1
    assert (
        decays[id(network.norm.weight)] == decays[id(network.pad_token)] == decays[id(network.out.bias)] == 0
    )


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


def test_muon_update_is_orthogonal_and_has_the_size_of_an_adamw_update():
    weight = nn.Parameter(torch.zeros(32, 64))
    optimizer = build_optimizer([("hidden.weight", weight)], "muon", lr=1.0, weight_decay=0.0)
    weight.grad = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    values = torch.linalg.svdvals(weight.detach())
    assert values.min() > 0.5 * values.max()  # the gradient's own were spread wider: it was orthogonalised
    assert torch.linalg.svdvals(weight.grad).min() < 0.3 * torch.linalg.svdvals(weight.grad).max()
    assert weight.detach().square().mean().sqrt() == pytest.approx(0.2, rel=0.2)


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_state_round_trips_to_the_last_bit(kind, tmp_path):
    torch.manual_seed(0)
    network = Network()
    optimizer = build_optimizer(network.named_parameters(), kind, lr=1e-2)
    first = train(network, optimizer, 4)
    twin = copy.deepcopy(network)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    resumed = build_optimizer(twin.named_parameters(), kind, lr=1e-2)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for both in (optimizer, resumed):
        set_lr(both, 0.5)
    assert resumed.param_groups[0]["lr"] == 5e-3
    assert train(network, optimizer, 4, first=4) == train(twin, resumed, 4, first=4)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), twin.parameters(), strict=True))
    assert first[-1] != first[0]


def test_state_of_another_kind_is_refused():
    network = Network()
    state = build_optimizer(network.named_parameters(), "adamw").state_dict()
    with pytest.raises(ValueError, match="1 optimizers, expected 2"):
        build_optimizer(network.named_parameters(), "muon").load_state_dict(state)


def test_mistakes_are_told():
    with pytest.raises(UserError, match="nothing to train"):
        build_optimizer(nn.Linear(2, 2).requires_grad_(False).named_parameters())
    with pytest.raises(UserError, match="'sgd'; expected 'muon' or 'adamw'"):
        build_optimizer(nn.Linear(2, 2).named_parameters(), "sgd")
    with pytest.raises(UserError, match="schedule is 'wavy'"):
        lr_scale(5, 10, 0, "wavy")


def test_schedule():
    assert [lr_scale(step, 100, 3) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert lr_scale(53, 103, 3) == pytest.approx(0.5)
    assert lr_scale(103, 103, 3) == pytest.approx(0.0)
    assert lr_scale(28, 103, 3, "linear") == pytest.approx(0.75)
    assert lr_scale(103, 103, 3, "cosine", floor=0.1) == pytest.approx(0.1)
    assert lr_scale(99, 103, 3, "constant") == 1.0
    scales = [lr_scale(step, 50, 5) for step in range(50)]
    assert all(0 < scale <= 1 for scale in scales)
    assert scales[5:] == sorted(scales[5:], reverse=True)
