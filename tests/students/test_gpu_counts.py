"""What a one-step picture asks of a GPU, counted with fake tensors: launches, bytes, copies and waits."""

from __future__ import annotations

import json

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from l2p.bench.launches import counted
from l2p.bench.step_count import count_step
from l2p.students.heads.block import gated_product, scaled_norm

SIDE = 4096


@pytest.fixture(scope="module")
def on_gpu():
    return count_step("base", SIDE, SIDE)


def test_a_warm_step_neither_waits_nor_copies_but_its_result(on_gpu):
    counts, copied = on_gpu
    whole = counts["whole"]
    assert whole.waits == whole.to_host == whole.to_device == []
    assert copied == [(3 * SIDE * SIDE + 1,)]  # 8 bits, and one for NaN
    assert whole.kernels["philox_normal"] == 1
    assert whole.total <= 460


def test_the_core_is_at_most_350_launches(on_gpu):
    core = on_gpu[0]["core"]
    assert core.total <= 350 and core.moved < 7e9


def test_the_head_is_one_band_of_at_most_120_launches(on_gpu):
    head = on_gpu[0]["head"]
    assert head.total <= 80 and head.moved < 15.6e9
    assert not head.kernels["native_layer_norm"] > 7 and not head.kernels["mm"] > 12  # no stripes


def test_one_picture_is_scaled_by_its_norm(on_gpu):
    """Of the head's blocks: two passes over 256 MB of the fine grid less in each; on a CPU, the same numbers."""
    assert on_gpu[0]["head"].kernels["native_layer_norm"] == 7
    x, scale = torch.randn(1, 3, 5, 8), torch.randn(1, 1, 1, 8)
    with torch.no_grad():
        weighted = torch.nn.functional.layer_norm(x, (8,), scale.flatten(), eps=1e-6)
        torch.testing.assert_close(weighted, scaled_norm(x, scale))


def test_one_picture_is_gated_by_its_product(on_gpu):
    """The branches of the head's two blocks: a gate in the weight, a sum in the product."""
    head = on_gpu[0]["head"]
    assert head.kernels["addmm"] >= 4 and not head.kernels["addcmul"]
    x, gate, values, weight = (
        torch.randn(size) for size in ((1, 3, 5, 8), (1, 1, 1, 8), (1, 3, 5, 6), (8, 6))
    )
    torch.testing.assert_close(gated_product(x, gate, values, weight), x + gate * (values @ weight.T))


def test_what_is_counted():
    """Of a product and its copy to the host, by hand."""
    with FakeTensorMode():
        a, b = torch.empty(8, 4, device="cuda"), torch.empty(16, 4, device="cuda")
        with counted() as count:
            (a @ b.T).cpu()
            torch.empty(3).to("cuda", non_blocking=True)
            a.view(4, 8), torch.empty_like(a)
            b.mul_(2)
    assert count.kernels == {"mm": 1, "_to_copy": 2, "mul_": 1} and count.bytes["mul_"] == 2 * 4 * 16 * 4
    assert count.bytes["mm"] == 4 * (8 * 4 + 16 * 4 + 8 * 16)
    assert count.to_host == [4 * 8 * 16] and count.to_device == [12] and count.waits == ["_to_copy"]


def test_the_command_counts(l2p, tmp_path):
    code, out, err = l2p(
        "bench", "--count", "--preset", "tiny", "--sizes", "256", "--json", tmp_path / "count.json"
    )
    (row,) = json.loads((tmp_path / "count.json").read_text())["rows"]
    counts, _ = count_step("tiny", 256, 256)
    assert code == 0 and err == "" and "tiny, 256 x 256" in out
    assert row["head"] == {"launches": counts["head"].total, "bytes_moved": counts["head"].moved}
    assert row["waits"] == [] and row["bytes_to_host"] == 3 * 256**2 + 1
    code, _, err = l2p("bench", "--count", "--rounds", "3")
    assert code == 2 and err.startswith("l2p: --rounds goes with timing")


def test_a_tensor_on_the_wrong_device_is_found():
    with FakeTensorMode(), counted(), pytest.raises(RuntimeError, match="device"):
        torch.empty(3, device="cuda") + torch.empty(3)
