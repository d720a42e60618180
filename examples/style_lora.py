"""Does a style LoRA of the teacher carry over to its one-step student?

Trains a LoRA on the bundled teacher's transformer with sepia renders, in diffusers' format, loads it onto the student, and
compares: how much of the style arrives in the teacher (20 steps) and in the student (one step), and whether the student still
draws its own picture.

    python examples/style_lora.py --out runs/style-lora                 # some minutes on two cores
    l2p generate landscapes-128 "a lake at dusk" --lora runs/style-lora/pytorch_lora_weights.safetensors
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

import l2p
from l2p import flow
from l2p.images import make_grid, save_png, to_uint8
from l2p.landscapes import Scene, caption, render
from l2p.teachers import load_teacher

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "w1", "w2", "w3"]
FIRST_TRAIN, FIRST_TEST = 1_500_000, 7_500_000  # scenes; the test's are in no training
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
SEPIA = np.array([1.08, 0.92, 0.68], np.float32)


def sepia(images: np.ndarray) -> np.ndarray:
    """uint8 [..., 3] to the style: brightness alone, times one warm colour."""
    return np.clip((images @ LUMA)[..., None] * SEPIA, 0, 255).round().astype(np.uint8)


def train(teacher, steps: int, batch: int, rank: int, lr: float, folder: Path) -> Path:
    """Flow matching on sepia renders; only the adapters train. Returns the LoRA's file."""
    from diffusers import ZImagePipeline
    from peft import LoraConfig, get_peft_model_state_dict

    network = teacher.transformer.train()
    network.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS))
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    scenes = [Scene.from_seed(FIRST_TRAIN + i) for i in range(8 * batch)]
    pictures = torch.from_numpy(sepia(np.stack([render(scene, 128, 128) for scene in scenes])))
    with torch.no_grad():
        z_0 = torch.cat([teacher.encode(p.permute(0, 3, 1, 2) / 127.5 - 1) for p in pictures.split(batch)])
    captions = [caption(scene) for scene in scenes]
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        chosen = torch.randperm(len(scenes), generator=generator)[:batch]
        z, eps = z_0[chosen], torch.randn(z_0[chosen].shape, generator=generator)
        t = flow.shift_time(torch.sigmoid(torch.randn(batch, generator=generator)), 3.0)
        z_t = (1 - t)[:, None, None, None] * z + t[:, None, None, None] * eps
        velocity = teacher.velocity(z_t, t, teacher.encode_prompts([captions[i] for i in chosen]))
        loss = F.mse_loss(velocity, flow.velocity(z, eps))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - step / steps)
        optimizer.step()
        if step % 25 == 0 or step == steps - 1:
            print(f"step {step}: loss {float(loss.detach()):.4f}", flush=True)
    network.eval()
    ZImagePipeline.save_lora_weights(folder, transformer_lora_layers=get_peft_model_state_dict(network))
    return folder / "pytorch_lora_weights.safetensors"


@torch.no_grad()
def teacher_images(teacher, prompts: list[str], seed: int) -> np.ndarray:
    """uint8 [B, 128, 128, 3] in 20 steps from latent noise of its own."""
    shape = (len(prompts), *teacher.geometry.latent_shape(128, 128))
    eps = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return to_uint8(teacher.decode(teacher.sample(eps, teacher.encode_prompts(prompts), 20, 1.0)))


def chroma(images: np.ndarray) -> float:
    """Mean deviation of the pixels' colours from sepia's hue, in levels: 0 for a picture in the style."""
    tone = (images @ LUMA)[..., None] * SEPIA
    return float(np.abs(images - np.clip(tone, 0, 255)).mean())


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Of two uint8 arrays, in dB."""
    return float(-10 * np.log10(((a.astype(float) - b.astype(float)) ** 2).mean() / 255**2))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--student", default="landscapes-128")
    parser.add_argument("--out", type=Path, default=Path("runs/style-lora"))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--images", type=int, default=32)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    prompts = [caption(Scene.from_seed(FIRST_TEST + i)) for i in range(args.images)]
    student = l2p.load(args.student, dtype="fp32")
    seeds = list(range(args.images))

    def student_images() -> np.ndarray:
        return np.stack([np.asarray(image) for image in student.generate(prompts, seeds=seeds)])

    teacher = load_teacher("landscapes", dtype=torch.float32)
    rows = {"teacher": teacher_images(teacher, prompts, 1), "student": student_images()}
    lora = train(teacher, args.steps, args.batch, args.rank, args.lr, args.out)
    rows["teacher + LoRA"] = teacher_images(teacher, prompts, 1)
    student.load_lora(lora)
    rows["student + LoRA"] = student_images()
    result = {}
    for name in ("teacher", "student"):
        plain, styled = rows[name], rows[f"{name} + LoRA"]
        result[name] = {
            "colour error without LoRA": chroma(plain),
            "with LoRA": chroma(styled),
            "style that arrived, %": 100 * (1 - chroma(styled) / chroma(plain)),
            "PSNR to its own picture in sepia, dB": psnr(styled, sepia(plain)),
        }
    (args.out / "result.json").write_text(json.dumps(result, indent=2))
    shown = [image for name in rows for image in rows[name][:8]]
    save_png(make_grid(shown, columns=8), args.out / "style.png")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
