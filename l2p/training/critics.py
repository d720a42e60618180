"""The networks that objectives own: each objective's with an optimiser of its own, stepped before the student's.

They live inside the student's training step, so that the stage still counts the student's steps alone, and so that an
objective with a critic composes with any other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from l2p import distributed
from l2p.errors import UserError
from l2p.objectives.base import CriticObjective, StepContext
from l2p.training.engine.log import READ_EVERY, waits
from l2p.training.optim import build_optimizer


class Critics:
    """Optimisers of the :class:`~l2p.objectives.base.CriticObjective` among a stage's objectives.

    Args:
        objectives: name -> objective; those without networks of their own are passed over.
        gradient_clip: largest gradient norm of each; 0 clips nothing.
    """

    def __init__(self, objectives: Iterable[tuple[str, nn.Module]], gradient_clip: float) -> None:
        self.gradient_clip = gradient_clip
        self._norms: dict[str, Tensor] = {}  # of a GPU: the largest since the last look
        self.objectives = {name: o for name, o in objectives if isinstance(o, CriticObjective)}
        self.optimizers = {
            name: build_optimizer(o, "adamw", o.critic_learning_rate, weight_decay=0.0, betas=o.critic_betas)
            for name, o in self.objectives.items()
        }

    def step(self, ctx: StepContext) -> dict[str, Tensor]:
        """Train every critic for its number of updates; the terms of its last one, as ``NAME/critic_TERM``.

        Raises:
            UserError: a loss or gradient that is not finite.
        """
        terms: dict[str, Tensor] = {}
        for name, objective in self.objectives.items():
            optimizer = self.optimizers[name]
            for _ in range(objective.critic_updates):
                with ctx.purpose(f"{name}/critic"):
                    found = objective.critic_loss(ctx)
                optimizer.zero_grad(set_to_none=True)
                sum(found.values()).backward()
                distributed.average_gradients(objective.parameters())
                norm = nn.utils.clip_grad_norm_(objective.parameters(), self.gradient_clip or math.inf)
                self._guard(name, ctx.step, norm)
                optimizer.step()
                torch.clear_autocast_cache()  # it holds the weights as they were before this step
            optimizer.zero_grad(set_to_none=True)
            terms |= {f"{name}/critic_{term}": value.detach() for term, value in found.items()}
        return terms

    def _guard(self, name: str, step: int, norm: Tensor) -> None:
        """On a GPU a norm is looked at every :data:`READ_EVERY` steps, and before a checkpoint: reading waits."""
        self._norms[name] = (
            torch.maximum(norm, self._norms[name]) if name in self._norms else norm
        )  # NaN stays
        if not waits(norm) or (step + 1) % READ_EVERY == 0:
            self._look(name, f" at step {step}")

    def _look(self, name: str, when: str = "") -> None:
        norm = self._norms.pop(name)
        if not torch.isfinite(norm):
            raise UserError(
                f"the critic of objectives.{name} diverged{when} (gradient norm {float(norm)}): "
                f"lower objectives.{name}.critic_learning_rate"
            )

    def state_dict(self) -> dict[str, Any]:
        for name in list(self._norms):
            self._look(name)
        return {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the optimisers. Raises: UserError where the objectives are others."""
        if state.keys() != self.optimizers.keys():
            raise UserError(
                f"the checkpoint has critics of {sorted(state) or 'no objective'}, this recipe of "
                f"{sorted(self.optimizers) or 'no objective'}: rerun with --resume never"
            )
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state[name])
