"""One optimiser object for a whole network: Muon on hidden matrices, AdamW on everything else.

Muon orthogonalises the momentum of each hidden weight matrix (Newton-Schulz, in bfloat16: cheap on a CPU too). Its
updates are rescaled to AdamW's root mean square, so one learning rate serves both halves. A convolution is the matrix
[out, in * kernel]. Embeddings, input and output layers, norms, biases and depthwise convolutions keep AdamW. The learning rate is a pure function of the step: nothing to restore.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from l2p.errors import UserError
from l2p.training.sharded import first_row

# Matrices that read from or write to a foreign space (pixels, captions, time) are no hidden layers.
BORDER_LAYERS = re.compile(
    r"embed|token|final|lm_head|(^|\.)(head\.)?(linear|output|out|readout|to_pixels|conv_in|conv_out|proj_out|proj_in|input)\.weight$"
)
SCHEDULES = ("cosine", "linear", "constant")


def is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    """Whether Muon should train this parameter: a weight between two hidden layers, dense or convolutional."""
    return parameter.ndim in (2, 4) and min(parameter.shape[:2]) > 1 and not BORDER_LAYERS.search(name)


class ConvMuon(torch.optim.Muon if hasattr(torch.optim, "Muon") else object):
    """Muon that takes a convolution's weight [out, in, kh, kw] as the matrix [out, in * kh * kw]."""

    def __init__(self, params: list[nn.Parameter], **settings: Any):
        with _as_matrices(params):
            super().__init__(params, **settings)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        params = [p for group in self.param_groups for p in group["params"]]
        if isinstance(params[0], DTensor):
            return self._step_sharded()
        with _as_matrices(params):
            return super().step(closure)

    @torch.no_grad()
    def _step_sharded(self) -> None:
        """The same step where each process holds some rows of every weight, gradient and momentum.

        Newton-Schulz needs whole matrices: each update is gathered, orthogonalised by all alike, and every process keeps
        its rows of the result.
        """
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                rows = p.to_local()
                gradient = p.grad.to_local().flatten(1)
                state, shape = self.state[p], (p.shape[0], p.shape[1:].numel())
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = _rows(torch.zeros_like(gradient), p, shape)
                momentum = state["momentum_buffer"].to_local()
                momentum.lerp_(gradient, 1 - group["momentum"])
                update = gradient.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
                # A weight and a gradient of the update's shape, for torch's own step to work on.
                whole = nn.Parameter(torch.zeros(shape, dtype=p.dtype, device=rows.device))
                whole.grad = _rows(update, p, shape).full_tensor()
                torch.optim.Muon(
                    [whole],
                    lr=group["lr"],
                    weight_decay=0.0,
                    momentum=0.0,
                    nesterov=False,
                    ns_coefficients=group["ns_coefficients"],
                    eps=group["eps"],
                    ns_steps=group["ns_steps"],
                    adjust_lr_fn=group["adjust_lr_fn"],
                ).step()
                start = first_row(p.shape, p.device_mesh)
                rows.mul_(1 - group["lr"] * group["weight_decay"])
                rows.add_(whole[start : start + len(rows)].view_as(rows))


@contextmanager
def _as_matrices(params: list[nn.Parameter]) -> Iterator[None]:
    """Weights and gradients with two axes inside the `with` (torch's Muon refuses more), the same memory throughout."""
    shapes = [(p, p.shape) for p in params if p.ndim > 2]
    for p, shape in shapes:
        _reshape(p, (shape[0], -1))
    try:
        yield
    finally:
        for p, shape in shapes:
            _reshape(p, shape)


def _rows(local: Tensor, like: DTensor, shape: tuple[int, int]) -> DTensor:
    """A matrix of which this process has the rows `local`, divided as the sharded weight `like` is."""
    return DTensor.from_local(
        local,
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=torch.Size(shape),
        stride=(shape[1], 1),
    )


def _reshape(p: nn.Parameter, shape: Sequence[int]) -> None:
    grad, p.grad = p.grad, None
    p.data = p.data.view(shape)
    p.grad = None if grad is None else grad.reshape(shape)


def lr_scale(
    step: int, total_steps: int, warmup_steps: int = 0, schedule: str = "cosine", floor: float = 0.0
) -> float:
    """Factor of the learning rate at `step` (0-based): a linear warm-up, then a decay from 1 to `floor`.

    The warm-up reaches 1 at step `warmup_steps` and never gives 0; the decay would reach `floor` at `total_steps`.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if schedule == "constant":
        return 1.0
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    if schedule == "linear":
        return floor + (1 - floor) * (1 - progress)
    if schedule == "cosine":
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
    raise UserError(f"schedule is {schedule!r}; expected one of {', '.join(SCHEDULES)}")


def set_lr(optimizer: torch.optim.Optimizer, scale: float) -> None:
    """Set every group's learning rate to `scale` times the one it was built with."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * scale


class CombinedOptimizer(torch.optim.Optimizer):
    """Several optimisers behind one: one step, one list of groups, one state that round-trips."""

    def __init__(self, optimizers: list[torch.optim.Optimizer]):
        self.optimizers = optimizers
        super().__init__([p for o in optimizers for g in o.param_groups for p in g["params"]], {})
        self._share_groups()

    def _share_groups(self) -> None:
        # The children's own dictionaries: a learning rate set here is the children's learning rate.
        self.param_groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer in self.optimizers:
            optimizer.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the children. Raises ValueError where the number of children or their parameters differ."""
        states = state_dict["optimizers"]
        if len(states) != len(self.optimizers):
            raise ValueError(f"the state has {len(states)} optimizers, expected {len(self.optimizers)}")
        for optimizer, state in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict(state)
        self._share_groups()


def build_optimizer(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    kind: str = "muon",
    lr: float = 1e-3,
    weight_decay: float = 0.01,
    *,
    betas: tuple[float, float] = (0.9, 0.95),
    momentum: float = 0.95,
    matrix_lr: float | None = None,
    adjust_lr_fn: str = "match_rms_adamw",
    ns_steps: int = 5,
) -> torch.optim.Optimizer:
    """Optimiser over the parameters that require gradients.

    Args:
        kind: "muon" (Muon for hidden matrices, AdamW for the rest) or "adamw" (AdamW for all).
        weight_decay: on weights with two or more axes; norms, biases and single vectors are never decayed.
        matrix_lr: learning rate of Muon's half, where it should differ from `lr`.
        adjust_lr_fn: Muon's scaling by shape; "match_rms_adamw" lets both halves share one learning rate.
        ns_steps: Newton-Schulz iterations; five give singular values within about 30% of 1.

    Raises:
        UserError: unknown kind, nothing to train, or a torch without Muon.
    """
    named = [(name, parameter) for name, parameter in named_parameters if parameter.requires_grad]
    if not named:
        raise UserError(
            "nothing to train: every parameter is frozen; set student.train_blocks to more than 'none'"
        )
    if kind not in ("muon", "adamw"):
        raise UserError(f"optimizer is {kind!r}; expected 'muon' or 'adamw'")
    hidden = [(name, p) for name, p in named if kind == "muon" and is_hidden_matrix(name, p)]
    names = {name for name, _ in hidden}
    rest = [(name, p) for name, p in named if name not in names]

    optimizers: list[torch.optim.Optimizer] = []
    if hidden:
        if not hasattr(torch.optim, "Muon"):
            raise UserError(
                f"optimizer 'muon' needs torch 2.9 or newer, found {torch.__version__}: use 'adamw'"
            )
        optimizers.append(
            ConvMuon(
                [p for _, p in hidden],
                lr=lr if matrix_lr is None else matrix_lr,
                weight_decay=weight_decay,
                momentum=momentum,
                adjust_lr_fn=adjust_lr_fn,
                ns_steps=ns_steps,
            )
        )
    matrices = [p for _, p in rest if p.numel() > max(p.shape, default=1)]
    vectors = [p for _, p in rest if p.numel() <= max(p.shape, default=1)]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    if rest:
        optimizers.append(torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=betas))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return CombinedOptimizer(optimizers)
