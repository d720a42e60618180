"""CUDA graphs without CUDA: a capture records what the step asks of its device, and a replay does that and nothing else.

So a value that Python took from the first noise or caption, or a tensor made outside the step, would show.
"""

from __future__ import annotations

import gc
import weakref
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
from diffusers import ZImageTransformer2DModel  # noqa: F401 - imported here, as it reads torch.cuda.Stream
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from l2p import flow, runtime
from l2p.cli.main import main
from l2p.errors import UserError
from l2p.students import graphs
from l2p.students.graphs import StepGraphs
from l2p.students.grow import grow
from l2p.students.pipeline import StudentPipeline
from l2p.students.presets import random_student
from l2p.teachers.protocol import Conditioning
from l2p.teachers.z_image_forward import _rope_tables


class Recorder(TorchDispatchMode):
    """Operations with their very tensors; :meth:`replay` runs them again into the tensors that they gave."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.replays = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out

    def replay(self) -> None:
        self.replays += 1
        with torch.no_grad():
            for func, args, kwargs, out in self.calls:
                for old, new in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True):
                    if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)


@pytest.fixture
def captures(monkeypatch):
    """Stands in for CUDA; the list of graphs that were captured."""
    made = []

    def new():
        made.append(Recorder())
        return made[-1]

    @contextmanager
    def capture(recorder):
        with recorder:
            yield

    stream = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", new)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(graphs, "check_cuda_graphs", lambda device: None)
    monkeypatch.setattr(graphs, "_memory", lambda device: 10**9)
    monkeypatch.setattr(
        graphs, "_reserved", lambda device: 100 * sum(recorder.calls != [] for recorder in made)
    )
    return made


def words(student, seed, lengths=(7, 5)):
    generator = torch.Generator().manual_seed(seed)
    embeds = torch.randn(len(lengths), max(lengths), student.spec.core["cap_feat_dim"], generator=generator)
    lengths = torch.tensor(lengths)
    embeds[torch.arange(embeds.shape[1]) >= lengths[:, None]] = 0
    return Conditioning(embeds, lengths)


@pytest.fixture(params=["small", "grown", "in bands"])
def student(request):
    torch.manual_seed(0)
    made = random_student("tiny", 64, 64)
    if request.param == "grown":
        made = grow(made, 2, {"fine_patch": 8, "width": 32, "num_blocks": 1, "head_dim": 16})
    if request.param == "in bands":
        made.head.band_height = made.head.fine_patch
    return made.eval()


@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_a_replay_draws_what_the_student_draws(student, captures, dtype, within):
    """Of noise and captions that the capture has not seen."""
    side, drawn = 2 * student.spec.patch_size, StepGraphs(student)
    for seed in (1, 2, 3):
        noise, conditioning = flow.noise([seed, seed + 10], 3, side, side), words(student, seed)
        with torch.no_grad(), runtime.autocast("cpu", dtype):
            wanted = student(noise, torch.ones(2), conditioning)
            found = drawn(noise, conditioning)
        assert (found - wanted).norm() < within * wanted.norm()
    assert len(captures) == 1 and captures[0].replays == 4  # one of them for the comparison
    for lengths, count in (((32, 1), 1), ((7, 33), 2)):  # captions are padded to a multiple of 32
        other = words(student, 1, lengths)
        with torch.no_grad(), runtime.autocast("cpu", dtype):
            wanted, found = student(noise, torch.ones(2), other), drawn(noise, other)
        assert (found - wanted).norm() < within * wanted.norm()
        assert len(captures) == count


@torch.no_grad()
def test_twenty_prompts_are_two_graphs(captures):
    student = random_student("tiny", 64, 64)
    drawn, noise = StepGraphs(student), torch.randn(1, 3, 16, 16)
    for length in [*range(20, 51, 2), 21, 31, 32, 33]:
        given = words(student, length, (length,))
        expected = student(noise, torch.ones(1), given)
        torch.testing.assert_close(drawn(noise, given), expected, rtol=1e-4, atol=1e-4)
    assert len(captures) == 2


def test_graphs_are_bounded_by_their_bytes(captures, monkeypatch):
    monkeypatch.setattr(graphs, "_memory", lambda device: 20_000)
    student = random_student("tiny", 64, 64)
    drawn = StepGraphs(student)  # a picture of 16 x 16 is 3,072 bytes
    for length in (20, 40, 70, 100, 130):
        drawn(torch.zeros(1, 3, 16, 16), words(student, 0, (length,)))
    assert len(captures) == 5 and len(drawn._captured) == 3
    drawn(torch.zeros(1, 3, 16, 16), words(student, 0, (120,)))
    assert len(captures) == 5


def test_a_graph_holds_the_tables_that_it_reads(captures):
    student = random_student("tiny", 64, 64)
    drawn = StepGraphs(student)
    drawn(torch.zeros(1, 3, 16, 16), words(student, 0, (3,)))
    captures[0].calls.clear()
    table = weakref.ref(_rope_tables(*_tables(student, 1, 1, 32))[0])
    _rope_tables.cache_clear()
    gc.collect()
    assert table() is not None
    drawn._captured.clear()
    gc.collect()
    assert table() is None


def _tables(student, height, width, caption):
    config = student.core.transformer.config
    family = (config.rope_theta, tuple(config.axes_dims), tuple(config.axes_lens))
    return *family, height, width, caption, torch.device("cpu")


def test_a_graph_that_draws_something_else_is_refused(captures, monkeypatch):
    student = random_student("tiny", 64, 64)
    monkeypatch.setattr(Recorder, "replay", lambda self: self.calls[-1][3].mul_(1.1))
    with pytest.raises(
        UserError, match=r"draws another picture \(relative difference [0-9.]+, at most 0.03\): leave out"
    ) as error:
        StepGraphs(student)(torch.randn(1, 3, 16, 16), words(student, 0, (3,)))
    assert "\n" not in str(error.value)


def test_a_step_that_cannot_be_captured_is_one_line(captures, monkeypatch):
    @contextmanager
    def fails(recorder):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")
        yield

    monkeypatch.setattr(torch.cuda, "graph", fails)
    student = random_student("tiny", 64, 64)
    with pytest.raises(
        UserError, match=r"cannot be captured \(operation not permitted when stream is capturing\)"
    ):
        StepGraphs(student)(torch.randn(1, 3, 16, 16), words(student, 0, (3,)))


def test_a_pipeline_draws_its_pictures_by_graphs(captures, monkeypatch):
    monkeypatch.setattr("l2p.students.pipeline.check_cuda_graphs", lambda device: None)
    student = random_student("tiny", 64, 64)
    texts = lambda prompts: words(student, len(prompts[0]), (5,) * len(prompts))  # noqa: E731
    pipeline = StudentPipeline(student, texts)
    wanted = pipeline.generate_arrays(["a lake"], [3], 56, 64)
    pipeline.use_cuda_graphs()
    found = pipeline.generate_arrays(["a lake"], [3], 56, 64)
    assert len(captures) == 1 and found.shape == wanted.shape
    assert abs(found.astype(int) - wanted.astype(int)).max() <= 1


def test_what_graphs_cannot_serve_is_one_line(captures, monkeypatch):
    monkeypatch.setattr("l2p.students.pipeline.check_cuda_graphs", lambda device: None)
    student = random_student("tiny", 64, 64)
    pipeline = StudentPipeline(student, lambda prompts: words(student, 0, (5,)))
    pipeline.use_cuda_graphs()
    for arguments, what in (((2,), "takes 2 steps"), ((1, 10**9, 3.0), "takes guidance of 3")):
        with pytest.raises(UserError, match=f"{what}: leave out --cuda-graphs"):
            pipeline.generate_arrays(["a lake"], [3], 64, 64, *arguments)
    assert not captures


@pytest.mark.parametrize("command", [["bench", "--preset", "tiny"], ["generate", "landscapes-128", "a lake"]])
def test_a_cpu_has_none(command, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*command, "--device", "cpu", "--cuda-graphs"]) == 2
    said = capsys.readouterr().err
    assert "CUDA graphs are for CUDA devices, this one is cpu: leave out --cuda-graphs" in said
    assert said.count("\n") == 1
