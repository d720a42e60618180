"""L2P's published network and sampler written a second time, in numpy and fp64, from the published formulas.

Z-Image's transformer on pixel patches without its final layer, the local decoder around it, and Euler steps at shifted
times with guidance. Functions of a dictionary of weights under their published names; one picture at a time.
"""

from __future__ import annotations

import numpy as np
from scipy.special import expit

EPS, MULTIPLE, THETA = 1e-5, 32, 256.0


def silu(x):
    return x * expit(x)


def linear(w, name, x):
    out = x @ w[f"{name}.weight"].T
    return out + w[f"{name}.bias"] if f"{name}.bias" in w else out


def rms_norm(weight, x):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + EPS) * weight


def rotations(positions, axes):
    """positions [n, 3] -> complex [n, sum(axes) / 2]: each axis turns its own share of a head's pairs."""
    parts = [
        np.exp(1j * np.outer(positions[:, axis], THETA ** (-np.arange(0, dim, 2) / dim)))
        for axis, dim in enumerate(axes)
    ]
    return np.concatenate(parts, axis=1)


def attention(w, prefix, x, turns, heads):
    made = []
    for part in "qkv":
        values = linear(w, f"{prefix}.to_{part}", x).reshape(len(x), heads, -1)
        if part != "v":
            values = rms_norm(w[f"{prefix}.norm_{part}.weight"], values)
            pairs = (values[..., 0::2] + 1j * values[..., 1::2]) * turns[:, None]
            values = np.stack([pairs.real, pairs.imag], axis=-1).reshape(values.shape)
        made.append(values)
    q, k, v = made
    out = np.empty_like(q)
    for head in range(heads):
        scores = q[:, head] @ k[:, head].T / np.sqrt(q.shape[2])
        scores = np.exp(scores - scores.max(1, keepdims=True))
        out[:, head] = scores / scores.sum(1, keepdims=True) @ v[:, head]
    return linear(w, f"{prefix}.to_out.0", out.reshape(len(x), -1))


def block(w, prefix, x, turns, heads, c=None):
    """Scale and gate of attention, scale and gate of the feed-forward, from c; gates through tanh."""
    scale = gate = scale_mlp = gate_mlp = None
    if c is not None:
        scale, gate, scale_mlp, gate_mlp = np.split(linear(w, f"{prefix}.adaLN_modulation.0", c), 4)
        gate, gate_mlp, scale, scale_mlp = np.tanh(gate), np.tanh(gate_mlp), 1 + scale, 1 + scale_mlp
    else:
        scale = gate = scale_mlp = gate_mlp = 1.0

    def norm(name, values):
        return rms_norm(w[f"{prefix}.{name}.weight"], values)

    x = x + gate * norm(
        "attention_norm2",
        attention(w, f"{prefix}.attention", norm("attention_norm1", x) * scale, turns, heads),
    )
    inner = norm("ffn_norm1", x) * scale_mlp
    ff = f"{prefix}.feed_forward"
    hidden = linear(w, f"{ff}.w2", silu(linear(w, f"{ff}.w1", inner)) * linear(w, f"{ff}.w3", inner))
    return x + gate_mlp * norm("ffn_norm2", hidden)


def padded(x, token):
    """Up to a multiple of 32 rows by a learnt one."""
    missing = -len(x) % MULTIPLE
    return np.concatenate([x, np.repeat(token, missing, axis=0)])


def features(w, x_t, t, caption, sizes, patch):
    """Image tokens [h, w, dim] after the last block, at the published code's own time, 1 - t."""
    heads, axes = sizes["n_heads"], sizes["axes_dims"]
    height, width = x_t.shape[1] // patch, x_t.shape[2] // patch
    half = 128
    angles = 1000.0 * (1 - t) * np.exp(-np.log(10000.0) * np.arange(half) / half)
    time = np.concatenate([np.cos(angles), np.sin(angles)])
    c = linear(w, "t_embedder.mlp.2", silu(linear(w, "t_embedder.mlp.0", time)))

    pixels = x_t.reshape(3, height, patch, width, patch).transpose(1, 3, 2, 4, 0).reshape(height * width, -1)
    image = padded(linear(w, f"all_x_embedder.{patch}-1", pixels), w["x_pad_token"])
    text = linear(w, "cap_embedder.1", rms_norm(w["cap_embedder.0.weight"], caption))
    text = padded(text, w["cap_pad_token"])
    text_at = np.array([(1 + i, 0, 0) for i in range(len(text))])
    image_at = np.zeros((len(image), 3))
    image_at[: height * width] = [
        (len(text) + 1, row, column) for row in range(height) for column in range(width)
    ]
    image_turns, text_turns = rotations(image_at, axes), rotations(text_at, axes)
    for number in range(sizes["n_refiner_layers"]):
        image = block(w, f"noise_refiner.{number}", image, image_turns, heads, c)
        text = block(w, f"context_refiner.{number}", text, text_turns, heads)
    both, turns = np.concatenate([image, text]), np.concatenate([image_turns, text_turns])
    for number in range(sizes["n_layers"]):
        both = block(w, f"layers.{number}", both, turns, heads, c)
    return both[: height * width].reshape(height, width, -1)


def conv(w, name, x):
    """x [c, h, w]; zeros around it."""
    weight = w[f"{name}.weight"]
    side = weight.shape[2]
    x = np.pad(x, ((0, 0), (side // 2, side // 2), (side // 2, side // 2)))
    height, width = x.shape[1] - side + 1, x.shape[2] - side + 1
    out = np.zeros((len(weight), height, width))
    for i in range(side):
        for j in range(side):
            out += np.einsum("oc,chw->ohw", weight[:, :, i, j], x[:, i : i + height, j : j + width])
    return out + w[f"{name}.bias"][:, None, None]


def local_decoder(w, x_t, tokens, levels):
    """Down by maxima of 2 x 2, the tokens joined at the bottom, up by repetition; writes minus the velocity."""
    x, skips = x_t, []
    for level in levels:
        skips.append(silu(conv(w, f"local_decoder.enc{level}.0", x)))
        c, height, width = skips[-1].shape
        x = skips[-1].reshape(c, height // 2, 2, width // 2, 2).max((2, 4))
    x = silu(conv(w, "local_decoder.bottleneck.0", np.concatenate([x, tokens.transpose(2, 0, 1)])))
    for level, skip in zip(reversed(levels), reversed(skips), strict=True):
        x = conv(w, f"local_decoder.up{level}.1", x.repeat(2, 1).repeat(2, 2))
        x = silu(conv(w, f"local_decoder.dec{level}.0", np.concatenate([x, skip])))
    return conv(w, "local_decoder.out_conv", x)


def velocity(w, x_t, t, caption, sizes, patch, levels):
    return -local_decoder(w, x_t, features(w, x_t, t, caption, sizes, patch), levels)


def sample(w, noise, caption, empty, steps, scale, sizes, patch, levels, shift=3.0):
    """sigma' = s sigma / (1 + (s - 1) sigma); u = u_empty + scale (u - u_empty); x + (sigma_next - sigma) u."""
    sigmas = np.linspace(1.0, 0.0, steps + 1)
    sigmas = shift * sigmas / (1 + (shift - 1) * sigmas)
    x = noise
    for now, after in zip(sigmas[:-1], sigmas[1:], strict=True):
        told = (w, x, now)
        u, without = (velocity(*told, text, sizes, patch, levels) for text in (caption, empty))
        x = x + (after - now) * (without + scale * (u - without))
    return x
