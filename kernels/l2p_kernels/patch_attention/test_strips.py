"""The second version of the Triton kernels, interpreted where there is no GPU, against the fp64 reference."""

import importlib

import pytest
import torch

from . import api, op
from .api import patch_attention
from .cases import Case, errors_against_reference
from .op import patch_attention_strips

strips = importlib.import_module(".strips", __package__)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3}
DTYPES = [torch.float16] if DEVICE == "cuda" else list(TOLERANCE)

CASES = [
    Case(1, 9, 21, heads=2, head_dim=32, norm=True, rope=True),  # strips of two tiles, the last one cut
    Case(1, 3, 5, heads=1, head_dim=32, rope=True),  # less than a tile
    Case(2, 16, 8, heads=1, head_dim=32, norm=True),  # whole tiles
    Case(1, 13, 4, heads=1, head_dim=64),  # a column of keys that is outside the grid
]


@pytest.fixture(autouse=True)
def poisoned():
    """Fills uninitialised memory with NaN, so that anything left unwritten shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("case", "dtype"), [*((case, DTYPES[0]) for case in CASES), (CASES[1], torch.float16)], ids=str
)
def test_matches_the_fp64_reference(case, dtype):
    errors = errors_against_reference(case, "triton_strips", dtype, DEVICE)
    assert max(errors.values()) <= TOLERANCE[dtype], errors


@pytest.mark.parametrize("capability", (80, 90, 100))
def test_whole_and_half_tiles_give_the_same(capability, monkeypatch):
    """What each kind of matrix instruction has registers for; the interpreter takes the last elsewhere."""
    chosen = strips.options("forward", capability)
    assert (chosen["HELD"], chosen["WALK"]) == {
        80: (4, False),
        90: (8, True),
        100: (8, False),
    }[capability]
    if DEVICE == "cpu":
        monkeypatch.setattr(strips, "_capability", lambda x: capability)
    case = Case(1, 9, 12, heads=1, head_dim=32, norm=True, rope=True)
    errors = errors_against_reference(case, "triton_strips", torch.float16, DEVICE)
    assert max(errors.values()) <= 2e-3, errors


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_on_a_grid_with_an_inside(dtype):
    """Rows of tiles without masks, and strips longer than two tiles."""
    errors = errors_against_reference(
        Case(1, 33, 70, heads=1, norm=True, rope=True), "triton_strips", dtype, DEVICE
    )
    assert max(errors.values()) <= TOLERANCE[dtype], errors


@pytest.mark.parametrize("capability", (90, 120))
def test_inside_the_grid_nothing_is_masked(capability, monkeypatch):
    """The middle row of tiles; its last tile has keys outside in the column that is its neighbour's last as well."""
    if DEVICE == "cpu":
        monkeypatch.setattr(strips, "_capability", lambda x: capability)
    case = Case(1, 24, 25, heads=1, head_dim=32, rope=True)
    inputs = {name: x.detach().half() for name, x in case.tensors(device=DEVICE).items()}
    wanted = case.run({name: x.double() for name, x in inputs.items()}, "reference")
    got = case.run(inputs, "triton_strips")
    assert (got.double() - wanted).norm() <= 2e-3 * wanted.norm()


def test_bf16(interpreted_bf16):
    """What ships: bf16 with norms and RoPE."""
    case = Case(1, 9, 12, heads=1, norm=True, rope=True)
    errors = errors_against_reference(case, "triton_strips", torch.bfloat16, DEVICE)
    assert max(errors.values()) <= 1.5e-2, errors


def test_scores_far_below_zero_give_finite_gradients():
    """Keys outside the grid have score 0, which is far above `lse` here."""
    case = Case(1, 5, 5, heads=1, head_dim=32)
    inputs = {name: x.detach() for name, x in case.tensors(torch.float16, DEVICE).items()}
    inputs |= {"q": inputs["q"].abs() * 8, "k": -inputs["k"].abs() * 8}
    inputs = {name: x.requires_grad_() for name, x in inputs.items()}
    grads = torch.autograd.grad(case.run(inputs, "triton_strips").sum(), list(inputs.values()))
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("axis", (-1, 3, 4), ids=("channels", "packed", "heads"))
def test_strided_inputs(axis):
    """Packed in three, as a fused projection gives them, and in ways that a descriptor does not take."""
    case = Case(1, 6, 9, heads=2, head_dim=32, rope=True)
    inputs = {name: x.detach().half() for name, x in case.tensors(device=DEVICE).items()}
    views = dict(zip("qkv", torch.stack(list(inputs.values()), dim=axis).unbind(axis), strict=True))
    assert not views["v"].is_contiguous()
    assert torch.equal(case.run(views, "triton_strips"), case.run(inputs, "triton_strips"))


def test_launches(monkeypatch):
    """Forward 3, backward 3: no more, whatever the grid."""
    launched = []
    for name in ("table", "turn", "forward", "grad_q", "grad_kv", "sum"):
        kernel = getattr(strips.kernels, f"{name}_kernel")

        class Spy:
            def __init__(self, name, kernel):
                self.name, self.kernel = name, kernel

            def __getitem__(self, grid):
                launched.append(self.name)
                return self.kernel[grid]

        monkeypatch.setattr(strips.kernels, f"{name}_kernel", Spy(name, kernel))
    case = Case(1, 4, 9, heads=1, head_dim=32, norm=True, rope=True)
    inputs = {name: x.detach().half().requires_grad_() for name, x in case.tensors(device=DEVICE).items()}
    out = case.run(inputs, "triton_strips")
    assert launched == ["table", "turn", "forward"]
    torch.autograd.grad(out, list(inputs.values()), torch.ones_like(out))
    assert launched[3:] == ["grad_q", "grad_kv", "sum"]


def test_opcheck():
    case = Case(1, 6, 9, heads=1, head_dim=32, norm=True, rope=True)
    inputs = [x.detach().half().requires_grad_() for x in case.tensors(device=DEVICE).values()]
    torch.library.opcheck(
        patch_attention_strips,
        (*inputs, *case.angles(DEVICE), 8, 4, 0.25),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )


@pytest.mark.parametrize(
    "changes, words",
    [({"tile": 4, "halo": 2}, "tile 8, halo 4"), ({"head_dim": 48}, "head_dim of 32 or 64.*48")],
)
def test_what_does_not_fit_is_refused(changes, words):
    case = Case(**({"head_dim": 32} | changes))
    with pytest.raises(ValueError, match=words):
        case.run(case.tensors(), "triton_strips")


def test_auto_takes_it_where_it_is_asked_for_and_fits(monkeypatch):
    from torch._subclasses.fake_tensor import FakeTensorMode

    monkeypatch.setattr(api, "ON_GPU", "triton_strips")
    taken = []
    for name in ("triton", "strips"):
        monkeypatch.setattr(
            api, f"patch_attention_{name}", lambda q, *_, name=name: (taken.append(name) or q, None)
        )
    with FakeTensorMode():
        for head_dim, dtype in ((32, torch.bfloat16), (32, torch.float32), (48, torch.bfloat16)):
            q = torch.empty(1, 8, 8, 1, head_dim, dtype=dtype, device="cuda")
            patch_attention(q, q, q)
        monkeypatch.setattr(
            op, "TRITON_VERSION", (3, 6)
        )  # for which a GPU's kernels were seen to come out wrong
        q = torch.empty(1, 8, 8, 1, 32, dtype=torch.bfloat16, device="cuda")
        patch_attention(q, q, q)
    assert taken == ["strips", "triton", "triton", "triton"]
