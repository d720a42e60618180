import pytest
import torch
from torch import nn

from l2p.training.engine.ema import EMA


def test_closed_form_without_warmup():
    layer = nn.Linear(1, 1, bias=False)
    layer.weight.data.fill_(1.0)
    ema = EMA(layer, decay=0.9, warmup=False)
    layer.weight.data.fill_(3.0)
    for _ in range(7):
        ema.update(layer)
    assert ema.average["weight"].item() == pytest.approx(3.0 - 2.0 * 0.9**7, rel=1e-6)


def test_closed_form_with_warmup():
    layer = nn.Linear(1, 1, bias=False)
    layer.weight.data.fill_(0.0)
    ema, expected = EMA(layer, decay=0.5), 0.0
    for n in range(1, 20):
        layer.weight.data.fill_(float(n))
        ema.update(layer)
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * n
    assert ema.average["weight"].item() == pytest.approx(expected, rel=1e-6)


def test_decay_0999_moves_though_the_network_is_bf16():
    layer = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    layer.weight.data.fill_(1.0)
    ema = EMA(layer, decay=0.999, warmup=False)
    layer.weight.data.fill_(1.5)
    for _ in range(100):
        ema.update(layer)
    assert ema.average["weight"].dtype == torch.float32
    assert ema.average["weight"].item() == pytest.approx(1.5 - 0.5 * 0.999**100, abs=1e-5)
    frozen = torch.tensor(1.0, dtype=torch.bfloat16)  # what an average kept in bf16 would do
    assert frozen.lerp(torch.tensor(1.5, dtype=torch.bfloat16), 0.001) == frozen


def test_only_what_trains_is_averaged_and_the_swap_gives_back():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False))
    ema = EMA(network, decay=0.5, warmup=False)
    assert set(ema.average) == {"0.weight", "0.bias"}
    network[0].weight.data.add_(1.0)
    own = network[0].weight.detach().clone()
    with pytest.raises(RuntimeError, match="inside"), ema.swapped(network):
        assert torch.allclose(network[0].weight, own - 1.0)
        raise RuntimeError("inside")
    assert torch.equal(network[0].weight, own)


def test_state_round_trips_and_a_foreign_one_is_refused():
    layer = nn.Linear(2, 2)
    ema = EMA(layer, decay=0.9)
    layer.weight.data.add_(1.0)
    ema.update(layer)
    twin = EMA(nn.Linear(2, 2), decay=0.9)
    twin.load_state_dict(ema.state_dict())
    assert twin.num_updates == 1
    assert torch.equal(twin.average["weight"], ema.average["weight"])
    with pytest.raises(ValueError, match="another network"):
        EMA(nn.Linear(2, 2, bias=False), decay=0.9).load_state_dict(ema.state_dict())


def test_on_a_gpu_all_weights_move_in_one_launch():
    from torch._subclasses.fake_tensor import FakeTensorMode

    from l2p.bench.launches import counted, fake

    with torch.device("meta"):
        network = nn.Sequential(*(nn.Linear(8, 8) for _ in range(50)))
    with FakeTensorMode():
        ema = EMA(fake(network), decay=0.9)
        with counted() as count:
            ema.update(network)
    assert count.total == 1 and count.kernels == {"_foreach_lerp_": 1} and not count.waits
