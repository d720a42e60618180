"""The head of a grown student: the small student's own head paints a draft, and patch attention adds the detail.

An enlarged draft is soft where the large picture has an edge, and an edge is a choice: this side's colour or that one's.
So the head writes, besides values to add, eight weights a pixel, which mix the draft of one small pixel further up, down,
left, right and askew into it (kernel prediction: Bako et al. 2017, doi 10.1145/3072959.3073708; Jo et al. 2018,
"dynamic upsampling filters", for enlargement). What it learns of one edge then holds for edges of all colours and contrasts. For
the same reason the fine tokens see, beside the draft, how it differs from its surroundings, enlarged.

Legend: g factor, p the large patch, f side of a fine patch, C width.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from l2p.patches import patchify, unpatchify
from l2p.students.heads.patch import EDGE, PatchHead, continued

MARGIN = 3  # small rows around its own that bicubic upsampling may read
AROUND = [(row, column) for row in (0, 1, 2) for column in (0, 1, 2) if (row, column) != (1, 1)]
SURROUNDINGS = 5  # small pixels a side that make a pixel's surroundings
CONTRAST = 4.0  # differences from them are small numbers, next to the colours themselves
TAPS = 4  # pixels on either side that the upsampling's correction reads: beyond, its taps are zero


class GrownHead(PatchHead):
    """A :class:`PatchHead` whose draft is the small student's picture, upsampled.

    At the start the last convolution writes zeros, so the picture is the draft.

    Args:
        inner: the small student's head; its picture is ``factor^2`` times smaller.
        factor: g, a divisor of ``patch_size``.
        knobs: the rest, as for :class:`PatchHead`.
    """

    seen_channels = 9  # input, draft, and its differences
    written_channels = 3 + len(AROUND)

    def __init__(
        self,
        inner: nn.Module,
        factor: int,
        core_dim: int,
        time_dim: int,
        patch_size: int,
        latent_dim: int,
        **knobs: int,
    ) -> None:
        super().__init__(core_dim, time_dim, patch_size, latent_dim, **knobs)
        self.inner, self.factor = inner, factor
        self.reach = max(EDGE, factor)

    def _make_draft(self, core_dim: int, latent_dim: int, new_final: object) -> None:
        """Nothing: the inner head draws it."""

    def forward(
        self, features: Tensor, c: Tensor, x_in: Tensor, t: Tensor, draft: Tensor | None = None
    ) -> Tensor:
        """As any head's.

        Args:
            draft: a small picture [B, 3, H / g, W / g] to use in place of the inner head's, so that detail can be trained
                on pictures whose small version is known.
        """
        if draft is None:
            return super().forward(features, c, x_in, t)
        return self.forward_pixels(features, c, self._prepared(draft), x_in, t)

    def pool(self, tokens: Tensor) -> Tensor:
        """``U^T`` of tokens: [B, rows, w, 3 p^2] to [B, rows, w, 3 (p / g)^2], white noise to white noise."""
        p, g = self.patch_size, self.factor
        return patchify(F.avg_pool2d(unpatchify(tokens.float(), p), g) * g, p // g)

    def context(self, features: Tensor, c: Tensor, pooled: Tensor, t: Tensor) -> Tensor:
        """The inner head's picture, made ready for :meth:`_draft`: [B, 6, H / g, W / g]."""
        return self._prepared(self.inner(features, c, unpatchify(pooled, self.patch_size // self.factor), t))

    def _prepared(self, small: Tensor) -> Tensor:
        """A small picture to upsample [B, 3, h, w], and its differences from each pixel's surroundings."""
        small = sharpened(small.float(), self.factor)
        mean = F.avg_pool2d(small, SURROUNDINGS, stride=1, padding=SURROUNDINGS // 2, count_include_pad=False)
        return torch.cat([small, CONTRAST * (small - mean)], dim=1)

    def _draft(
        self, features: Tensor, c: Tensor, context: Tensor, t: Tensor, top: int, bottom: int
    ) -> Tensor:
        return self._upsampled(context[:, :3], top, bottom)

    def _draft_features(self, draft: Tensor, context: Tensor, draft_top: int, low: int, high: int) -> Tensor:
        differences = self._upsampled(context[:, 3:], low, high).to(draft.dtype)
        return torch.cat([super()._draft_features(draft, context, draft_top, low, high), differences], dim=1)

    def _apply_residual(
        self, written: Tensor, draft: Tensor, draft_top: int, start: int, stop: int
    ) -> Tensor:
        added, weights = written.split((3, len(AROUND)), dim=1)
        g, (rows, columns) = self.factor, added.shape[2:]
        here = draft if draft.shape[2] == rows else draft[:, :, start - draft_top : stop - draft_top]
        around = draft
        if draft.shape[2] != rows:
            first, last = start - g - draft_top, stop + g - draft_top
            around = draft[:, :, max(0, first) : last]
            around = continued(around, 2, max(0, -first), max(0, last - draft.shape[2]))
        else:
            around = continued(around, 2, g, g)
        around = continued(around, 3, g, g)
        x = here.to(added.dtype) * (1 - weights.sum(1, keepdim=True)) + added
        for number, (row, column) in enumerate(AROUND):
            neighbour = around[:, :, row * g : row * g + rows, column * g : column * g + columns]
            x = torch.addcmul(x, weights[:, number : number + 1], neighbour.to(x.dtype))
        return x

    def _upsampled(self, small: Tensor, top: int, bottom: int) -> Tensor:
        """Rows [top, bottom) of the bicubic upsampling, from the small rows that they depend on."""
        g = self.factor
        first, last = max(0, top // g - MARGIN), -(-bottom // g) + MARGIN
        large = F.interpolate(small[:, :, first:last], scale_factor=g, mode="bicubic", align_corners=False)
        return large[:, :, top - first * g : bottom - first * g]


@lru_cache(maxsize=8)
def _response(factor: int, device: torch.device) -> Tensor:
    """What remains of one pixel and its neighbours after bicubic upsampling and averaging back: a kernel [9], fp32."""
    with torch.inference_mode(False):  # a kernel first made under it could not be trained with later
        impulse = torch.zeros(1, 1, 2 * TAPS + 1, 2 * TAPS + 1)
        impulse[0, 0, TAPS, TAPS] = 1.0
        large = F.interpolate(impulse, scale_factor=factor, mode="bicubic", align_corners=False)
        return F.avg_pool2d(large, factor)[0, 0].sum(0).to(device)


def sharpened(x: Tensor, factor: int) -> Tensor:
    """Small pictures [B, C, h, w], changed so that their bicubic upsampling has ``x`` as its block means.

    Van Cittert's iteration on the known response; what is left after it is below a thousandth of the finest detail.
    """
    kernel = _response(factor, x.device).to(x.dtype)
    weight = (kernel[:, None] * kernel[None]).expand(x.shape[1], 1, -1, -1)
    y = x
    for _ in range(6):
        y = y + x - F.conv2d(F.pad(y, (TAPS,) * 4, mode="replicate"), weight, groups=x.shape[1])
    return y
