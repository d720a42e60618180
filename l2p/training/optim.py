"""One optimiser for a whole network, by timm: Muon on hidden matrices, AdamW on everything else; and its schedule.

Muon orthogonalises the momentum of each hidden weight matrix (Newton-Schulz, in bfloat16 where the device computes it). Its updates are rescaled to
AdamW's root mean square, so one learning rate serves both. A convolution is the matrix [out, in * kernel]. Embeddings,
input and output layers, norms, biases and depthwise convolutions keep AdamW.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from timm.optim import Muon, muon, param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn

from l2p.errors import UserError
from l2p.runtime import has_fast_bf16
from l2p.training.engine.sharded import is_sharded

# Matrices that read from or write to a foreign space (pixels, captions, time) are no hidden layers.
BORDER_LAYERS = re.compile(
    r"embed|token|final|lm_head|(^|\.)(head\.)?(linear|output|out|readout|to_pixels|conv_in|conv_out|proj_out|proj_in|input)\.weight$"
)

BATCH = 2**25  # numbers that Muon orthogonalises at a time, unless one matrix has more


def is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    """Whether Muon should train this parameter: a weight between two hidden layers, dense or convolutional."""
    return parameter.ndim in (2, 4) and min(parameter.shape[:2]) > 1 and not BORDER_LAYERS.search(name)


class GroupedMuon(Muon):
    """timm's Muon with all matrices of one shape orthogonalised in one batch, and sums and decays in one launch for all.

    Attributes:
        newton_schulz_dtype: float32 on devices that only emulate bfloat16: half of a step's time there.
    """

    newton_schulz_dtype = torch.bfloat16

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        if any(is_sharded(p) for group in self.param_groups for p in group["params"]):
            name, run = "zeropower_via_newtonschulz", muon.zeropower_via_newtonschulz  # shards do not stack
        else:
            name, run = "muon", grouped_muon
        original = getattr(muon, name)
        setattr(muon, name, partial(run, dtype=self.newton_schulz_dtype))
        try:
            return super().step(closure)
        finally:
            setattr(muon, name, original)


def grouped_muon(
    params: list[Tensor],
    grads: list[Tensor],
    momentum_bufs: list[Tensor],
    *,
    lr: float,
    weight_decay: float,
    momentum: float,
    nesterov: bool,
    ns_steps: int,
    ns_coefficients: Any,
    eps: float,
    safety_factor: float,
    adjust_lr_fn: str,
    scale_eps: bool,
    dtype: torch.dtype,
    **_: Any,
) -> None:
    """In place of :func:`timm.optim.muon.muon`, which takes one matrix after the other; convolutions are flattened."""
    coefficients = muon.resolve_ns_coefficients(ns_coefficients, muon._COEFFICIENTS)
    torch._foreach_mul_(params, 1 - lr * weight_decay)
    torch._foreach_lerp_(momentum_bufs, grads, 1 - momentum)
    updates = torch._foreach_lerp(grads, momentum_bufs, momentum) if nesterov else momentum_bufs
    shapes: dict[tuple[int, int], list[int]] = {}
    for number, update in enumerate(updates):
        shapes.setdefault((len(update), update[0].numel()), []).append(number)
    batches = [
        (shape, numbers[first : first + many])
        for shape, numbers in shapes.items()
        for many in (max(1, BATCH // (shape[0] * shape[1])),)
        for first in range(0, len(numbers), many)
    ]
    for shape, numbers in batches:
        batch = torch.stack([updates[number].flatten(1) for number in numbers])
        turned = muon.zeropower_via_newtonschulz(
            batch,
            ns_steps,
            coefficients,
            eps=eps,
            safety_factor=safety_factor,
            dtype=dtype,
            scale_eps=scale_eps,
        )
        scale = muon.get_lr_scale(torch.Size(shape), adjust_lr_fn)
        turned = turned.to(params[numbers[0]].dtype)
        moves = [turned[i].view(params[number].shape) for i, number in enumerate(numbers)]
        torch._foreach_add_([params[number] for number in numbers], moves, alpha=-lr * scale)


def build_optimizer(
    network: nn.Module,
    kind: str = "muon",
    lr: float = 1e-3,
    weight_decay: float = 0.01,
    *,
    betas: tuple[float, float] = (0.9, 0.95),
) -> torch.optim.Optimizer:
    """Optimiser over those parameters of a network that require gradients.

    Args:
        kind: "muon" (Muon for hidden matrices, AdamW for the rest) or "adamw" (AdamW for all).
        weight_decay: on weights with two or more axes; norms, biases and single vectors are never decayed.
        betas: of AdamW.

    Raises:
        UserError: unknown kind, or nothing to train.
    """
    named = [(name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad]
    if not named:
        raise UserError(
            "nothing to train: every parameter is frozen; set student.train_blocks to more than 'none'"
        )
    if kind not in ("muon", "adamw"):
        raise UserError(f"optimizer is {kind!r}; expected 'muon' or 'adamw'")
    groups = param_groups_weight_decay(
        network,
        weight_decay,
        no_weight_decay_list=[name for name, p in named if p.numel() <= max(p.shape, default=1)],
        fallback_list=[name for name, p in named if kind == "adamw" or not is_hidden_matrix(name, p)],
    )
    on_gpu = named[0][1].device.type == "cuda"
    if kind == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=betas, foreach=on_gpu or None)
    # Nesterov's momentum is Muon's alone: timm would turn the others' AdamW into NAdamW with it.
    groups = [
        {**group, "nesterov": False, "eps": 1e-8}
        if group.get("use_fallback")
        else {**group, "use_muon": True, "nesterov": True}
        for group in groups
    ]
    optimizer = GroupedMuon(
        groups, lr=lr, ns_coefficients="original", adjust_lr_fn="match_rms_adamw", betas=betas
    )
    if not has_fast_bf16(named[0][1].device):
        optimizer.newton_schulz_dtype = torch.float32
    return optimizer


class WarmupConstantDecay(Scheduler):
    """A linear warm-up, then all of the learning rate, then a line down to 0 over the last ``decay_steps``."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, total_steps: int, warmup_steps: int, decay_steps: int
    ) -> None:
        super().__init__(optimizer, "lr", t_in_epochs=False)
        self.total_steps, self.warmup_steps, self.decay_steps = total_steps, warmup_steps, decay_steps

    def _get_lr(self, t: int) -> list[float]:
        scale = min(1.0, (t + 1) / (self.warmup_steps + 1), (self.total_steps - t) / self.decay_steps)
        return [value * max(0.0, scale) for value in self.base_values]


def build_schedule(
    optimizer: torch.optim.Optimizer, total_steps: int, warmup_steps: int = 0, decay_steps: int | None = None
) -> Scheduler:
    """Schedule of the optimiser's learning rates, a pure function of the step: call ``step_update(step)`` before each.

    Step n of the warm-up has ``(n + 1) / (warmup_steps + 1)`` of the learning rate, never 0; from step ``warmup_steps`` on
    half a cosine falls from all of it to 0 at ``total_steps``. With ``decay_steps`` all of it lasts until so many steps
    before the end, and a line falls to 0.
    """
    if decay_steps is not None:
        return WarmupConstantDecay(optimizer, total_steps, warmup_steps, decay_steps)
    lr = max(group.get("initial_lr", group["lr"]) for group in optimizer.param_groups)
    return CosineLRScheduler(
        optimizer,
        t_initial=max(2, total_steps - warmup_steps),
        warmup_t=warmup_steps,
        warmup_lr_init=lr / (warmup_steps + 1),
        warmup_prefix=True,
        t_in_epochs=False,
    )
