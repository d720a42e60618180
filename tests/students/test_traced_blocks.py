"""Every block that `compile_blocks` compiles is one graph, on the branches that a GPU takes: fake "cuda" tensors, in bf16.

For another torch: `make test TORCH=2.11.0`, or this file alone with that environment's pytest.
"""

from __future__ import annotations

import torch
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import FakeTensorMode

from l2p.students.presets import random_student
from l2p.students.student import PixelStudent
from l2p.teachers.protocol import Conditioning


def on_fake_cuda(student: PixelStudent, dtype: torch.dtype) -> None:
    """Inside a fake mode: the student's tensors become fake ones on "cuda", its weights in ``dtype``."""
    for module in student.modules():
        for name, x in module._parameters.items():
            if x is not None:
                module._parameters[name] = torch.nn.Parameter(
                    torch.empty(x.shape, dtype=dtype, device="cuda"), False
                )
        for name, x in module._buffers.items():
            if x is not None:
                module._buffers[name] = torch.empty(x.shape, dtype=x.dtype, device="cuda")


def test_every_block_is_one_graph_on_the_gpus_branch():
    torch._dynamo.reset()
    counters.clear()
    student = random_student("tiny", 64, 64)
    operators = []

    def backend(graph, _):
        operators.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        on_fake_cuda(student, torch.bfloat16)
        blocks = [*student.core.blocks, *student.head.blocks]
        for block in blocks:
            block.compile(fullgraph=True, backend=backend)
        x, t = torch.empty(1, 3, 64, 64, device="cuda"), torch.ones(1, device="cuda")
        features = torch.empty(1, 7, student.spec.core["cap_feat_dim"], device="cuda")
        picture = student(x, t, Conditioning(features, torch.tensor([7])))
    assert picture.shape == x.shape and picture.device == x.device
    assert counters["graph_break"] == {} and counters["stats"]["unique_graphs"] >= 2
    assert any("patch_attention_triton" in name for name in operators)
