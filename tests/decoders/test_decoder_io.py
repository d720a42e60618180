"""Decoders on disk: what was saved comes back, and nothing else is taken."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from l2p.decoders import io
from l2p.decoders.pid import LatentConditioning
from l2p.errors import UserError


def test_a_decoder_comes_back_as_it_was(decoder, latents, tmp_path):
    io.save_decoder(decoder, tmp_path / "decoder", {"recipe": {"name": "tiny"}})
    again = io.load_decoder(tmp_path / "decoder")
    assert again.spec == decoder.spec
    noise, told = torch.randn(1, 3, 256, 192), LatentConditioning.of(decoder.empty, latents, 0.0)
    with torch.no_grad():
        drawn, repeated = (network(noise, torch.ones(1), told) for network in (decoder, again))
    torch.testing.assert_close(repeated, drawn, rtol=0, atol=1e-5)


def test_other_folders_are_refused_and_left_alone(decoder, tmp_path):
    from safetensors.torch import load_file, save_file

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(UserError, match="is no decoder"):
        io.save_decoder(decoder, tmp_path / "mine")
    with pytest.raises(UserError, match="no pixel diffusion decoder at"):
        io.load_decoder(tmp_path / "mine")
    io.save_decoder(decoder, tmp_path / "good")
    bad = tmp_path / "bad"
    shutil.copytree(tmp_path / "good", bad)
    state = load_file(bad / "model.safetensors")
    state["draft.vae.decoder.conv_in.weights"] = state.pop("draft.vae.decoder.conv_in.weight")
    save_file(state, bad / "model.safetensors")
    with pytest.raises(UserError, match="missing: draft.vae.decoder.conv_in.weight"):
        io.load_decoder(bad)
    config = json.loads((tmp_path / "good" / "config.json").read_text())
    for key, value, said in (("format_version", 9, "decoder format 9"), ("scale", 5, "scale is 5")):
        (bad / "config.json").write_text(json.dumps({**config, key: value}))
        with pytest.raises(UserError, match=said):
            io.load_decoder(bad)
