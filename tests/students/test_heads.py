"""What each head is made of, what it reaches, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from l2p.errors import UserError
from l2p.students.heads import KNOBS, PatchHead, UNetHead, build_head

SIZES = {"core_dim": 24, "time_dim": 24, "latent_dim": 64, "scale": 0.5, "patch_size": 16}


def reach(head: torch.nn.Module, pixel: tuple[int, int], grid: int = 4) -> torch.Tensor:
    """Which input pixels [64, 64] and core tokens [4, 4] one output pixel depends on."""
    if isinstance(head, PatchHead):  # which at the start draws its draft alone
        torch.nn.init.normal_(head.conv_out.weight)
    features = torch.randn(1, grid, grid, 24, requires_grad=True)
    x_in = torch.randn(1, 3, grid * 16, grid * 16, requires_grad=True)
    head(features, torch.randn(1, 24), x_in, torch.ones(1))[0, :, pixel[0], pixel[1]].sum().backward()
    return x_in.grad[0].abs().sum(0) > 0, features.grad[0].abs().sum(-1) > 0


def test_every_kind_builds_and_unknown_ones_are_named():
    knobs = {"fine_patch": 4, "width": 16, "num_blocks": 1, "head_dim": 16, "tile": 4, "halo": 2}
    for kind, names in KNOBS.items():
        build_head({"kind": kind, **{name: knobs[name] for name in names}}, **SIZES)
    with pytest.raises(UserError, match="no head 'pacth': expected one of linear, patch, unet"):
        build_head({"kind": "pacth"}, **SIZES)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"fine_patch": 5}, "fine_patch=5 must divide"),
        ({"width": 100}, "width=100"),
        ({"head_dim": 18}, "head_dim=18"),
    ],
)
def test_patch_head_refuses_sizes_that_do_not_fit(knobs, message):
    with pytest.raises(UserError, match=message):
        PatchHead(24, 24, 16, 64, **knobs)


def test_patch_head_crosses_patch_borders_and_stays_local():
    """One block: a query sees its tile and the halo, and the convolution one fine token more."""
    torch.manual_seed(0)
    head = PatchHead(24, 24, 16, 64, fine_patch=4, width=16, num_blocks=1, head_dim=16, tile=2, halo=1)
    torch.nn.init.zeros_(
        head.readout.weight
    )  # the draft, which the fine tokens see, reaches one token further
    pixels, tokens = reach(head, (17, 29))  # with 2 pixels around it: fine rows 3 and 4, columns 6 and 7
    rows, columns = pixels.any(1).nonzero().flatten(), pixels.any(0).nonzero().flatten()
    # The blocks' convolution reads the fine rows 2 to 5, of tiles 1 and 2, whose windows are the fine rows 1 to 6; and
    # the fine columns 5 to 8, of tiles 2 to 4, whose windows are the fine columns 3 to 10.
    assert (rows.min(), rows.max()) == (4 * 1, 4 * 7 - 1)
    assert (columns.min(), columns.max()) == (4 * 3, 4 * 11 - 1)
    assert tokens[0, 1] and tokens[1, 2] and not tokens[3].any() and not tokens[:, 3].any()


def test_patch_head_opens_features_where_they_are():
    """Without blocks a core token writes its own patch and nothing else, the noise its own fine patch."""
    torch.manual_seed(0)
    head = PatchHead(24, 24, 16, 64, fine_patch=8, width=16, num_blocks=0, head_dim=16)
    torch.nn.init.zeros_(head.readout.weight)  # the draft may reach over to the neighbours
    pixels, tokens = reach(head, (36, 60))
    assert pixels[32:40, 56:64].all() and pixels.sum() == 64
    assert tokens[2, 3] and tokens.sum() == 1


@pytest.mark.parametrize(("start", "stop"), [(0, 96), (0, 20), (30, 61), (75, 96)])
def test_pixels_that_are_written_once_are_those_of_a_training(start, stop):
    """Without gradients the last convolutions' input is written to its place; with them it is put together."""
    torch.manual_seed(0)
    head = PatchHead(24, 24, 16, 64, fine_patch=4, width=16, num_blocks=1, head_dim=16, tile=2, halo=1)
    torch.nn.init.normal_(head.conv_out.weight)
    features, c, z, t = torch.randn(2, 6, 3, 24), torch.randn(2, 24), torch.randn(2, 6, 3, 64), torch.ones(2)
    x = torch.randn(2, 3, 96, 48)
    trained = head.rows(features, c, z, lambda a, b: x[:, :, a:b], t, start, stop)
    with torch.no_grad():
        drawn = head.rows(features, c, z, lambda a, b: x[:, :, a:b], t, start, stop)
    torch.testing.assert_close(drawn, trained, rtol=1e-5, atol=1e-5)


def test_patch_head_modulation_is_one_at_the_start():
    head = PatchHead(24, 24, 16, 64, width=32, num_blocks=1, head_dim=16)
    torch.nn.init.normal_(head.conv_out.weight)
    torch.nn.init.zeros_(head.readout.weight)  # the draft is the teacher's, and does depend on the time
    inputs = torch.randn(2, 2, 2, 24), torch.randn(2, 3, 32, 32), torch.ones(2)
    same = [head(inputs[0], c, *inputs[1:]) for c in (torch.zeros(2, 24), torch.randn(2, 24))]
    assert torch.equal(*same)


def test_unet_head_at_published_sizes():
    """Layer by layer: down 3-64-128-256-512, bottleneck, up 512-256-128-64-64, out 64-3."""
    with torch.device("meta"):
        head = UNetHead(3840, 16)

    def conv(inputs: int, outputs: int, side: int = 3) -> int:
        return side * side * inputs * outputs + outputs

    down = conv(3, 64) + conv(64, 128) + conv(128, 256) + conv(256, 512)
    up = sum(conv(channel, channel) for channel in (512, 256, 128, 64))
    merge = conv(1024, 256) + conv(512, 128) + conv(256, 64) + conv(128, 64)
    expected = down + conv(512 + 3840, 512, 1) + up + merge + conv(64, 3, 1)
    assert sum(parameter.numel() for parameter in head.parameters()) == expected


def test_unet_head_joins_the_picture_and_the_core():
    torch.manual_seed(0)
    head = UNetHead(24, 16, width=4)
    pixels, tokens = reach(head, (17, 30))
    assert pixels[17, 30] and tokens[1, 1]
    with pytest.raises(UserError, match="power of two, got 12"):
        UNetHead(24, 12)
