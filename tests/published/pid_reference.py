"""PiD's published network written a second time, in numpy and fp64, from the paper's and the configuration's formulas.

Plain functions of a dictionary of weights under their published names; one picture at a time, one index at a time where
that is what the formula says. Shares nothing with the code it checks.
"""

from __future__ import annotations

import numpy as np
from scipy.special import erf, expit


def silu(x):
    return x * expit(x)


def linear(w, name, x):
    out = x @ w[f"{name}.weight"].T
    return out + w[f"{name}.bias"] if f"{name}.bias" in w else out


def rms_norm(w, name, x):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * w[f"{name}.weight"]


def conv3(w, name, x, padding):
    """x [c, h, w]; 3 x 3 with one pixel around it, zeros or the edge again."""
    mode = {"zeros": {"mode": "constant"}, "replicate": {"mode": "edge"}}[padding]
    x = np.pad(x, ((0, 0), (1, 1), (1, 1)), **mode)
    weight, (_, height, width) = w[f"{name}.weight"], x.shape
    out = np.zeros((len(weight), height - 2, width - 2))
    for i in range(3):
        for j in range(3):
            out += np.einsum("oc,chw->ohw", weight[:, :, i, j], x[:, i : i + height - 2, j : j + width - 2])
    return out + w[f"{name}.bias"][:, None, None]


def group_norm(w, name, x, groups=4):
    shape = x.shape
    x = x.reshape(groups, -1)
    x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    return x.reshape(shape) * w[f"{name}.weight"][:, None, None] + w[f"{name}.bias"][:, None, None]


def time_embedding(w, t):
    rates = np.exp(-np.log(10.0) * np.arange(128) / 128)
    angles = 1000.0 * t * rates
    hidden = silu(linear(w, "t_embedder.mlp.0", np.concatenate([np.cos(angles), np.sin(angles)])))
    return linear(w, "t_embedder.mlp.2", hidden)


def patch_positions(head_dim, height, width, reference):
    """Complex rotations [h w, head_dim / 2]: x of the first frequency, y of the first, x of the second, ..."""
    axis = head_dim // 2
    thetas = [10000.0 * (n / reference) ** (axis / (axis - 2)) for n in (height, width)]
    out = np.zeros((height * width, head_dim // 2), complex)
    for row in range(height):
        for column in range(width):
            y = 16.0 * row / (height - 1) if height > 1 else 0.0
            x = 16.0 * column / (width - 1) if width > 1 else 0.0
            for k in range(head_dim // 4):
                out[row * width + column, 2 * k] = np.exp(1j * x * thetas[1] ** (-4 * k / head_dim))
                out[row * width + column, 2 * k + 1] = np.exp(1j * y * thetas[0] ** (-4 * k / head_dim))
    return out


def text_positions(head_dim, length):
    return np.exp(1j * np.outer(np.arange(length), 10000.0 ** (-np.arange(0, head_dim, 2) / head_dim)))


def heads_of(w, prefix, suffix, x, heads, rotation):
    """q, k, v [n, heads, head_dim]; q and k normed and rotated."""
    q, k, v = np.split(linear(w, f"{prefix}.qkv{suffix}", x), 3, axis=-1)
    made = []
    for name, part in (("q_norm", q), ("k_norm", k)):
        part = rms_norm(w, f"{prefix}.{name}{suffix}", part.reshape(len(x), heads, part.shape[1] // heads))
        turned = (part[..., 0::2] + 1j * part[..., 1::2]) * rotation[:, None]
        part = np.stack([turned.real, turned.imag], axis=-1).reshape(part.shape)
        made.append(part)
    return (*made, v.reshape(made[0].shape))


def attention(q, k, v):
    out = np.zeros_like(q)
    for head in range(q.shape[1]):
        scores = q[:, head] @ k[:, head].T / np.sqrt(q.shape[2])
        scores = np.exp(scores - scores.max(1, keepdims=True))
        out[:, head] = scores / scores.sum(1, keepdims=True) @ v[:, head]
    return out.reshape(len(q), -1)


def swiglu(w, name, x):
    return linear(w, f"{name}.w2", silu(linear(w, f"{name}.w1", x)) * linear(w, f"{name}.w3", x))


def joint_block(w, prefix, x, y, c, heads, rotation_x, rotation_y):
    streams = {}
    for stream, name, tokens, rotation in (("x", "img", x, rotation_x), ("y", "txt", y, rotation_y)):
        parameters = np.split(linear(w, f"{prefix}.adaLN_modulation_{name}.0", c), 6)
        normed = rms_norm(w, f"{prefix}.norm_{stream}1", tokens) * (1 + parameters[1]) + parameters[0]
        streams[stream] = (
            tokens,
            parameters,
            heads_of(w, f"{prefix}.attn", f"_{stream}", normed, heads, rotation),
        )
    q, k, v = (np.concatenate([streams["y"][2][i], streams["x"][2][i]]) for i in range(3))
    joint = attention(q, k, v)
    parts = {"y": joint[: len(y)], "x": joint[len(y) :]}
    out = []
    for stream in "xy":
        tokens, p, _ = streams[stream]
        tokens = tokens + p[2] * linear(w, f"{prefix}.attn.proj_{stream}", parts[stream])
        normed = rms_norm(w, f"{prefix}.norm_{stream}2", tokens) * (1 + p[4]) + p[3]
        out.append(tokens + p[5] * swiglu(w, f"{prefix}.mlp_{stream}", normed))
    return out


def pixel_block(w, prefix, x, s, heads, rotation):
    """x [N, P, C], s [N, D]."""
    patches, pixels, width = x.shape
    p = linear(w, f"{prefix}.adaLN_modulation.0", s).reshape(patches, pixels, 6 * width)
    shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = np.split(p, 6, axis=-1)
    normed = rms_norm(w, f"{prefix}.norm1", x) * (1 + scale) + shift
    tokens = linear(w, f"{prefix}.compress_to_attn", normed.reshape(patches, -1))
    attended = attention(*heads_of(w, f"{prefix}.attn", "", tokens, heads, rotation))
    attended = linear(w, f"{prefix}.expand_from_attn", linear(w, f"{prefix}.attn.proj", attended))
    x = x + gate * attended.reshape(x.shape)
    hidden = linear(w, f"{prefix}.mlp.fc1", rms_norm(w, f"{prefix}.norm2", x) * (1 + scale_mlp) + shift_mlp)
    hidden = hidden * (1 + erf(hidden / np.sqrt(2))) / 2
    return x + gate_mlp * linear(w, f"{prefix}.mlp.fc2", hidden)


def gate(w, prefix, x, z, sigma):
    logit = linear(w, f"{prefix}.content_proj", np.concatenate([x, z], axis=-1))
    return x + expit(logit - np.exp(w[f"{prefix}.log_alpha"]) * sigma) * z


def latent_tokens(w, latent, height, width, sizes):
    """[h w, latent_width] of a latent [c, h', w']."""
    f = sizes["unpacking"]
    channels, rows, columns = latent.shape
    spread = np.zeros((channels // f**2, rows * f, columns * f))
    for channel in range(channels):
        of, i, j = channel // f**2, channel % f**2 // f, channel % f
        spread[of, i::f, j::f] = latent[channel]
    cells = spread[:, np.arange(height) * rows * f // height][:, :, np.arange(width) * columns * f // width]
    prefix, padding = "lq_proj.latent_proj", sizes["padding"]
    x = conv3(w, f"{prefix}.2", silu(conv3(w, f"{prefix}.0", cells, padding)), padding)
    for number in range(3, 3 + sizes["num_res_blocks"]):
        block = f"{prefix}.{number}.block"
        hidden = conv3(w, f"{block}.2", silu(group_norm(w, f"{block}.0", x)), padding)
        x = x + conv3(w, f"{block}.5", silu(group_norm(w, f"{block}.3", hidden)), padding)
    return x.reshape(len(x), -1).T


def pixel_positions(dim, height, width):
    rates = 10000.0 ** (-np.arange(dim // 4) / (dim // 4))
    out = np.zeros((height, width, dim))
    for row in range(height):
        for column in range(width):
            out[row, column] = np.concatenate(
                [f(at * rates) for at in (column, row) for f in (np.sin, np.cos)]
            )
    return out


def network(w, x_t, t, caption, latent, sigma, sizes):
    """Velocity [3, H, W] of one picture; w holds fp64 arrays, sizes the fields of a configuration."""
    p, heads = sizes["patch_size"], sizes["num_heads"]
    _, H, W = x_t.shape
    height, width = H // p, W // p
    caption = caption[: sizes["text_length"]]
    tokens = latent_tokens(w, latent, height, width, sizes)
    time = time_embedding(w, t)
    y = rms_norm(w, "y_embedder.norm", linear(w, "y_embedder.proj", caption))
    y = y + w["y_pos_embedding"][0, : len(caption)]
    patches = x_t.reshape(3, height, p, width, p).transpose(1, 3, 0, 2, 4).reshape(height * width, -1)
    s = linear(w, "s_embedder.proj", patches)
    head_dim = sizes["hidden_size"] // heads
    reference = sizes["rope_reference"] // p
    rotations = patch_positions(head_dim, height, width, reference), text_positions(head_dim, len(caption))
    for block in range(sizes["depth"]):
        if block % sizes["interval"] == 0:
            place = block // sizes["interval"]
            z = linear(w, f"lq_proj.output_heads.{place}", tokens)
            s = gate(w, f"lq_proj.gate_modules.{place}", s, z, sigma)
        s, y = joint_block(w, f"patch_blocks.{block}", s, y, silu(time), heads, *rotations)
    s = silu(time + s)
    if sizes["pixel_gate"]:
        s = gate(w, "pit_lq_gate", s, linear(w, "lq_proj.pit_head", tokens), sigma)
    x = linear(w, "pixel_embedder.proj", x_t.transpose(1, 2, 0)) + pixel_positions(sizes["pixel_width"], H, W)
    x = x.reshape(height, p, width, p, -1).transpose(0, 2, 1, 3, 4).reshape(height * width, p * p, -1)
    pixel_heads = sizes["pixel_heads"]
    rotation = patch_positions(sizes["pixel_attention_width"] // pixel_heads, height, width, reference)
    for block in range(sizes["pixel_depth"]):
        x = pixel_block(w, f"pixel_blocks.{block}", x, s, pixel_heads, rotation)
    x = linear(w, "final_layer.linear", rms_norm(w, "final_layer.norm", x))
    return x.reshape(height, width, p, p, 3).transpose(4, 0, 2, 1, 3).reshape(3, H, W)
