"""``adversarial``: a small critic on frozen teacher features tells teacher pictures from the student's.

Notable:
- The critic is light: a few convolutions on each map of a frozen network (as in projected GANs, arXiv 2111.01007, and
  with a diffusion teacher's features in LADD, arXiv 2403.12015). Every cell of a map judges its own part of the
  picture, and asks whether it fits the caption by an inner product (projection discriminator, arXiv 1802.05637).
- Losses: ``softplus`` (the non-saturating GAN, whose best critic is ``log p(x) / q(x)``), or ``hinge``.
- R1 by noise: ``|D(x) - D(x + sigma n)|^2 / sigma^2`` has the expectation ``|grad D|^2`` for small sigma and needs no
  second derivative (APT, arXiv 2501.08316, section 3.3).
- Pictures are padded and cut at a random offset, so that the critic cannot learn where patch borders lie.
- ``space: latents`` shows the critic what the core guesses, through the teacher's transformer, at noise of random times
  (LADD): neither head nor encoder runs, and it sees what is drawn rather than how sharp.
- All of it in fp32, as a critic would find the difference between precisions first; but for the transformer, which
  rounds both sides alike.

Legend: B batch, C channels of a map, h w its grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l2p.config import (
    CountOrZero,
    CriticUpdates,
    FeatureScale,
    LearningRate,
    PositiveFraction,
    Text,
    Weight,
    Width,
)
from l2p.corpus.prompts import LANDSCAPES, prompts_for
from l2p.errors import UserError
from l2p.features import FeatureSpec, Probe, load_features, shrink, shrink_factor
from l2p.objectives.base import CriticObjective, StepContext, call_frozen
from l2p.objectives.latents import check_latents
from l2p.runtime import no_autocast
from l2p.seeds import SEEDS

if TYPE_CHECKING:
    from l2p.lift import Lift
    from l2p.recipe import Recipe, StageConfig
    from l2p.teachers import Conditioning, Teacher

RENDERS = SEEDS["teacher"][:24_576]  # scenes of the bundled teacher's own training
USUAL = {"pixels": "encoder", "latents": "transformer@2,-1"}  # features of each space


class AdversarialObjective(CriticObjective):
    """A GAN term on features of the teacher: of its VAE encoder, or of its transformer.

    Args:
        loss: "softplus" or "hinge".
        reals: "teacher" pictures of the batch, or "renders" of the procedural world, which are better than any teacher.
        space: "pixels" (the student's pictures) or "latents" (what its core guesses, in features of the transformer).
        features: the frozen network of whose layers each has a small critic, named as in ``drift``, such as
            "timm:NAME@3,7,11". None is "encoder" in pixels and "transformer@2,-1" in latents.
        feature_scale: of pictures, as in ``pairs``.
        teacher_time: latents are noised to random times up to it; small times show detail, large ones layout.
        width: channels of the critic.
        r1: weight of the gradient penalty on reals; 0 is off.
        r1_noise: deviation of its noise, in units of [-1, 1] or of latents; larger is steadier and less exact.
        padding: largest random offset in pixels; a patch side or more hides the patch grid.
        critic_learning_rate, critic_updates: of the critic; updates before each step of the student.
    """

    name = "adversarial"

    def __init__(
        self,
        *,
        teacher: Teacher,
        lift: Lift,
        weight: Weight = 1.0,
        loss: Literal["softplus", "hinge"] = "softplus",
        reals: Literal["teacher", "renders"] = "teacher",
        space: Literal["pixels", "latents"] = "pixels",
        features: Text | None = None,
        feature_scale: FeatureScale = 1.0,
        teacher_time: PositiveFraction = 0.6,
        width: Width = 64,
        r1: Weight = 1.0,
        r1_noise: PositiveFraction = 0.05,
        padding: CountOrZero = 16,
        critic_learning_rate: LearningRate = 2e-4,
        critic_updates: CriticUpdates = 1,
    ) -> None:
        super().__init__(weight, critic_learning_rate, critic_updates)
        self.loss, self.reals, self.space = loss, reals, space
        self.r1 = r1
        self.r1_noise = r1_noise
        self.padding = padding
        self.shrink = shrink_factor(feature_scale)
        self.teacher_time = teacher_time
        self._features = load_features(features or USUAL[space], teacher)
        self.critic = Critic(self._features.channels, teacher.text_encoder.width, width)

    @classmethod
    def networks_named(cls, knobs: Mapping[str, Any]) -> list[FeatureSpec]:
        return [FeatureSpec.parse(knobs["features"] or USUAL[knobs["space"]])] if knobs["weight"] else []

    @classmethod
    def check(cls, knobs: Mapping[str, Any], recipe: Recipe, stage: StageConfig) -> None:
        super().check(knobs, recipe, stage)
        kind = FeatureSpec.parse(knobs["features"] or USUAL[knobs["space"]]).kind
        if (kind == "transformer") != (knobs["space"] == "latents"):
            raise UserError(
                f"objectives.adversarial.features={kind} does not fit space={knobs['space']}: the transformer sees latents, "
                "all others see pixels"
            )
        if knobs["space"] == "latents":
            check_latents("objectives.adversarial.space=latents", recipe)
            if knobs["feature_scale"] != 1:
                raise UserError(
                    "objectives.adversarial.feature_scale is of pictures: leave it at 1 with space: latents"
                )
        if knobs["reals"] == "renders" and recipe.corpus.prompts != LANDSCAPES:
            raise UserError(
                f"objectives.adversarial.reals=renders draws the world of corpus.prompts={LANDSCAPES}, "
                f"this recipe has {recipe.corpus.prompts}: set reals to teacher"
            )

    def forward(self, ctx: StepContext) -> dict[str, Tensor]:
        answer, conditioning = ctx.answer(self.space), ctx.batch.conditioning
        (maps,) = self._maps(ctx, conditioning, answer.float())
        with no_autocast(answer):
            logits = call_frozen(self.critic, maps, captions(conditioning))
            return {"generator": generator_loss(logits, self.loss)}

    def critic_loss(self, ctx: StepContext) -> dict[str, Tensor]:
        fake, prompted = ctx.answer(self.space).detach().float(), ctx.batch.conditioning
        with torch.no_grad():
            real, conditioning = self._reals(ctx)
            (fake_maps,) = self._maps(ctx, prompted, fake)
            noisy = [real + self.r1_noise * ctx.randn(*real.shape)] if self.r1 else []
            real_maps, *noisy_maps = self._maps(ctx, conditioning, real, *noisy)
        with no_autocast(fake):
            caption = captions(conditioning)
            on_real = self.critic(real_maps, caption)
            terms = {"loss": critic_loss(on_real, self.critic(fake_maps, captions(prompted)), self.loss)}
            if noisy:
                on_noisy = self.critic(noisy_maps[0], caption)
                slopes = [(a - b).square().mean() for a, b in zip(on_real, on_noisy, strict=True)]
                terms["r1"] = self.r1 / 2 * torch.stack(slopes).mean() / self.r1_noise**2
            return terms

    def _maps(self, ctx: StepContext, conditioning: Conditioning, *answers: Tensor) -> list[list[Tensor]]:
        """Maps of answers of one shape, all seen alike: at one offset, or through one noise at one time."""
        if self.space == "latents":
            t = (self.teacher_time * (1 - ctx.rand(len(conditioning)))).to(answers[0].device)
            eps = ctx.randn(*answers[0].shape)
            found = [self._features.of_latents(z, Probe(conditioning, t, eps)) for z in answers]
            return [[_normalised(f) for f in maps] for maps in found]
        images = random_offset(torch.cat(answers), self.padding, ctx.generator)
        with no_autocast(images):
            found = [f.float() for f in self._features.maps(shrink(images, self.shrink))]
            if self._features.spec.kind != "encoder":
                found = [_normalised(f) for f in found]
            maps = [f.chunk(len(answers)) for f in found]
        return [list(parts) for parts in zip(*maps, strict=True)]

    def _reals(self, ctx: StepContext) -> tuple[Tensor, Conditioning]:
        """What is real, in the critic's space [B, ...], and its captions."""
        images = ctx.batch.images
        if self.reals == "teacher":
            reals = ctx.batch.latents if self.space == "latents" else images
            return reals.float(), ctx.batch.conditioning
        from l2p.images import from_uint8
        from l2p.landscapes import render_batch

        picks = ctx.randint(len(RENDERS), len(images)).tolist()
        rendered = from_uint8(render_batch([RENDERS[i] for i in picks], *images.shape[2:])).to(images.device)
        conditioning = ctx.teacher.encode_prompts(prompts_for(LANDSCAPES, picks, RENDERS.start))
        reals = ctx.teacher.encode(rendered).float() if self.space == "latents" else rendered
        return reals, conditioning.to(images.device)


class Critic(nn.Module):
    """Logits of maps: for each map [B, C, h, w] its cells' [B, h, w].

    Args:
        channels: C of each map.
        caption_dim: width of a caption's mean embedding.
        width: channels inside.
    """

    def __init__(self, channels: list[int], caption_dim: int, width: int) -> None:
        super().__init__()
        self.bodies = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(count, width, 1), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1), nn.SiLU()
            )
            for count in channels
        )
        self.outs = nn.ModuleList(nn.Conv2d(width, 1, 1) for _ in channels)
        self.captions = nn.ModuleList(nn.Linear(caption_dim, width, bias=False) for _ in channels)
        for weight in (*self.outs.parameters(), *self.captions.parameters()):
            nn.init.zeros_(weight)  # an undecided critic, which pushes nobody

    def forward(self, maps: list[Tensor], caption: Tensor) -> list[Tensor]:
        logits = []
        for x, body, out, embed in zip(maps, self.bodies, self.outs, self.captions, strict=True):
            x = body(x)
            fit = torch.einsum("bchw,bc->bhw", x, embed(caption)) / x.shape[1] ** 0.5
            logits.append(out(x).squeeze(1) + fit)
        return logits


def _normalised(features: Tensor) -> Tensor:
    """Features [B, C, h, w] with mean 0 and deviation 1 over C: a transformer's grow from block to block."""
    return F.layer_norm(features.float().movedim(1, -1), features.shape[1:2]).movedim(-1, 1)


def critic_loss(real: list[Tensor], fake: list[Tensor], kind: str) -> Tensor:
    """The critic's loss, the mean over maps. With softplus its minimum is at ``log p(x) / q(x)``."""
    if kind == "hinge":
        terms = [F.relu(1 - r).mean() + F.relu(1 + f).mean() for r, f in zip(real, fake, strict=True)]
    else:
        terms = [F.softplus(-r).mean() + F.softplus(f).mean() for r, f in zip(real, fake, strict=True)]
    return torch.stack(terms).mean()


def generator_loss(fake: list[Tensor], kind: str) -> Tensor:
    """What the student minimises: the mean over maps of ``softplus(-D)``, or of ``-D`` for hinge."""
    return torch.stack([(-f if kind == "hinge" else F.softplus(-f)).mean() for f in fake]).mean()


def random_offset(images: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Images [B, C, H, W] moved by up to ``padding`` pixels each way, what is missing mirrored."""
    padding = min(padding, min(images.shape[2:]) - 1)
    if not padding:
        return images
    down, right = torch.randint(2 * padding + 1, (2,), generator=generator, device=generator.device).tolist()
    height, width = images.shape[2:]
    return F.pad(images, [padding] * 4, mode="reflect")[:, :, down : down + height, right : right + width]


def captions(conditioning: Conditioning) -> Tensor:
    """Mean embedding [B, C] of each caption, padding left out (it is zero), in fp32."""
    return conditioning.embeds.float().sum(1) / conditioning.lengths.to(conditioning.embeds.device)[:, None]
