"""The choice of a path: on fake "cuda" tensors, so that the GPU's branch is taken on any machine."""

import logging

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from . import dispatch, registration
from .patch_attention import patch_attention

IMPLS = ("reference", "windowed", "triton")


@pytest.fixture
def fake():
    dispatch._say_once.cache_clear()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        yield mode
    dispatch._say_once.cache_clear()


def test_a_slow_path_on_a_gpu_is_a_warning_once(fake, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "l2p_kernels")
    x = torch.empty(2, device="cuda")
    assert dispatch.choose("op", "auto", IMPLS, x) == "triton"
    dispatch._say_once.cache_clear()
    monkeypatch.setattr(dispatch, "HAS_TRITON", False)
    for _ in range(2):
        assert dispatch.choose("op", "auto", IMPLS, x) == "windowed"
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING"]
    assert "triton is not installed" in caplog.text


def test_an_operator_runs_with_its_own_device_current(fake, monkeypatch):
    entered = []

    class Device(torch.cuda.device):
        def __init__(self, device):
            self.device = device

        def __enter__(self):
            entered.append(self.device)

        def __exit__(self, *_):
            entered.append(None)

    monkeypatch.setattr(torch.cuda, "device", Device)
    x = torch.empty(2, device="cuda:1")
    with torch.autocast("cpu", torch.bfloat16):
        run = registration.guarded(lambda x: list(entered))
        assert run(x) == [torch.device("cuda:1")] and entered[-1] is None
        autocast = registration.guarded(lambda x: torch.is_autocast_enabled("cpu"))
        assert autocast(torch.empty(2)) is False


def test_every_operator_is_guarded(monkeypatch):
    """`register` wraps both directions, whatever it is given."""
    wrapped = []
    monkeypatch.setattr(registration, "guarded", lambda function: wrapped.append(function) or function)
    options = {
        "forward": lambda x: x + 1,
        "backward": lambda *args: [args[0]],
        "fake": lambda x: x.new_empty(x.shape),
    }
    registration.register("test_guard", "Tensor x", **options, flops=lambda x: (0, 0), tensors=1, gradients=1)
    assert len(wrapped) == 2 and wrapped[0] is options["forward"]


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16, torch.float32), ids=str)
def test_on_fake_cuda_the_triton_operator_is_traced_in_one_graph(fake, dtype):
    """With norms and RoPE, as models call it. Nothing in `choose` may break the graph."""
    shape = (1, 16, 24, 2, 32)
    q, k, v = (torch.empty(shape, dtype=dtype, device="cuda:1") for _ in range(3))
    weight, rows, columns = (torch.ones(*size, device="cuda:1") for size in ((32,), (16, 8), (24, 8)))
    seen = []

    def backend(graph, _):
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    @torch.compile(fullgraph=True, backend=backend)
    def run(q, k, v):
        return patch_attention(q, k, v, q_norm=weight, k_norm=weight, rope=(rows, columns))

    torch._dynamo.reset()
    out = run(q, k, v)
    assert (out.shape, out.dtype, out.device) == (torch.Size(shape), dtype, torch.device("cuda:1"))
    assert any("patch_attention_triton" in name for name in seen)
