"""A student as diffusers knows models: `PixelStudentModel`, and `PixelPipeline` with the call its users know.

This file and what it imports also travel inside an exported folder (`l2p/hub/bundle.py`), where the package is not
installed: it imports no more than it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin, DiffusionPipeline, ImagePipelineOutput, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import is_accelerate_available
from PIL import Image
from torch import Tensor

from l2p import flow
from l2p.errors import UserError
from l2p.images import to_uint8
from l2p.noise import pixel_noise
from l2p.runtime import autocast, realign_tensors
from l2p.students.student import PixelStudent, StudentSpec, current_keys
from l2p.students.usage import usage_notes, warn_all
from l2p.teachers.text import TextEncoder

SIDE = 8  # pixels; other sides are drawn larger and cut


class PixelStudentModel(ModelMixin, PixelStudent, ConfigMixin):
    """A `PixelStudent` that diffusers can save, load, move and offload; its config is the student's spec.

    The lift's map is exact on purpose and stays in fp32 whatever the dtype of the weights.
    """

    # Where accelerate is missing diffusers refuses the list, and copies into buffers as they were made: in fp32.
    _keep_in_fp32_modules = ["basis", "offset"] if is_accelerate_available() else None
    _supports_param_buffer_assignment = False  # it would judge the dtype of all weights by that of a buffer

    @register_to_config
    def __init__(self, student_spec: dict[str, Any]) -> None:
        PixelStudent.__init__(self, StudentSpec(**current_keys(student_spec)))
        self._gradient_checkpointing_func = None  # what ModelMixin's own __init__ would set

    @classmethod
    def from_student(cls, student: PixelStudent) -> PixelStudentModel:
        """The same weights, not copied."""
        with torch.device("meta"):
            model = cls(asdict(student.spec))
        model.load_state_dict(student.state_dict(), strict=True, assign=True)
        return model.eval()


class PixelPipeline(DiffusionPipeline):
    """Prompts to pictures in one step, in pixels: no VAE, no latents.

    Args:
        student: the network.
        text_encoder, tokenizer: the teacher's own.
    """

    model_cpu_offload_seq = "text_encoder->student"
    _callback_tensor_inputs = ["pixels", "latents"]

    def __init__(self, student: PixelStudentModel, text_encoder: torch.nn.Module, tokenizer: Any) -> None:
        super().__init__()
        self.register_modules(
            student=realign_tensors(student), text_encoder=text_encoder, tokenizer=tokenizer
        )

    @classmethod
    def from_pretrained(
        cls, path: str | Path, torch_dtype: torch.dtype | None = None, revision: str | None = None
    ) -> PixelPipeline:
        """Load a folder that `l2p export --to diffusers` wrote, or one of that kind on the Hub, without its code.

        Args:
            torch_dtype: of the student's weights, the one they were saved in if None; the text encoder keeps its own, as
                in `l2p generate`.

        Raises:
            UserError: not such a folder, or weights that do not fit.
        """
        from l2p.hub.client import TEXTS, HubName, download

        folder = Path(path)
        name = None if folder.is_dir() else HubName.of_input(str(path))
        if name is not None:
            folder = download(HubName(name.repo, revision or name.revision), (*TEXTS, "*.safetensors"))
        if not (folder / "student" / "config.json").is_file():
            raise UserError(
                f"{path} is no exported pipeline, expected a folder of `l2p export --to diffusers`"
            )
        try:
            torch_dtype = torch_dtype or _saved_dtype(folder / "student")
            student, report = PixelStudentModel.from_pretrained(
                folder / "student", torch_dtype=torch_dtype, use_safetensors=True, output_loading_info=True
            )
        except Exception as error:  # diffusers, accelerate and safetensors each raise their own kinds
            raise UserError(
                f"cannot load the student in {path}: {' '.join(str(error).split())[:300]}"
            ) from error
        faults = [f"{what[:-5]}: {sorted(map(str, keys))[0]}" for what, keys in report.items() if keys]
        if faults:
            raise UserError(f"the weights in {path} do not fit their config; {'; '.join(faults)}")
        texts = TextEncoder.from_pretrained(folder, dtype="auto")
        return cls(student, texts.model, texts.tokenizer)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, float, dict[str, Tensor]], dict[str, Tensor]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("pixels",),
    ) -> ImagePipelineOutput | tuple:
        """Draw pictures.

        Args:
            height, width: pixels, multiples of 8; as trained if None.
            num_inference_steps: as trained if None, which is 1.
            generator: on the CPU, one or one a picture; `torch.Generator().manual_seed(7)` is `l2p generate --seed 7`. Of
                a student of Philox noise it gives its seed, and is left as it is: one for several pictures gives them
                this seed and the next ones.
            output_type: "pil", "np" ([B, H, W, 3] in [0, 1]) or "pt" ([B, 3, H, W] in [0, 1]).
            callback_on_step_end: `(pipeline, step, time, {"pixels": x})`; the pixels that it returns are gone on with.

        Raises:
            UserError: a value out of these ranges.
        """
        spec = self.student.spec
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        prompts = [text for text in prompts for _ in range(num_images_per_prompt)]
        steps = spec.num_steps if num_inference_steps is None else num_inference_steps
        if not prompts or steps < 1 or output_type not in ("pil", "np", "pt"):
            raise UserError(
                f"expected a prompt, num_inference_steps of 1 or more, and output_type pil, np or pt; got {len(prompts)} "
                f"prompts, {steps} and {output_type!r}"
            )
        warn_all(usage_notes(spec, num_inference_steps, None, height, width))
        height, width = self._side("height", height), self._side("width", width)
        p = spec.patch_size
        device, dtype = self._execution_device, self.student.dtype
        noise = self._noise(_each(generator, len(prompts)), height + -height % p, width + -width % p)
        texts = TextEncoder(self.tokenizer, self.text_encoder, cache_size=0)
        conditioning = texts(prompts).to(device)
        empty = texts.empty().to(device) if spec.guidance_scale > 1 else None

        def after_step(step: int, t: float, x: Tensor) -> Tensor:
            bar.update()
            if callback_on_step_end is None:
                return x
            shown = {name: x for name in callback_on_step_end_tensor_inputs}
            changed = callback_on_step_end(self, step, t, shown) or {}
            return next((changed[name] for name in shown if name in changed), x)

        with self.progress_bar(total=steps) as bar, autocast(device, dtype):
            pictures = self.student.sample(
                noise.to(device), conditioning, steps, on_step=after_step, empty=empty
            ).float()
        self.maybe_free_model_hooks()
        pictures = pictures[:, :, :height, :width]
        if output_type == "pil":
            images: Any = [Image.fromarray(array) for array in to_uint8(pictures)]
        else:
            images = (pictures.clamp(-1, 1) + 1) / 2
            images = images if output_type == "pt" else images.permute(0, 2, 3, 1).cpu().numpy()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _noise(self, generators: list[torch.Generator], height: int, width: int) -> Tensor:
        """White noise [B, 3, height, width] by the student's generator."""
        if self.student.spec.noise_generator == "mt19937":
            return flow.noise_from(generators, 3, height, width)
        seeds = [g.initial_seed() % 2**63 + generators[:i].count(g) for i, g in enumerate(generators)]
        return pixel_noise(self.student.spec.noise_generator, seeds, height, width, self.student.basis)

    def _side(self, name: str, value: int | None) -> int:
        value = getattr(self.student.spec, name) if value is None else value
        if value is None or value < SIDE or value % SIDE:
            raise UserError(f"{name} must be a positive multiple of {SIDE}, got {value}")
        return value


def _saved_dtype(folder: Path) -> torch.dtype:
    """Of the weights of a folder; the maps that are exact on purpose are fp32 in any case."""
    from safetensors import safe_open

    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            found = {file.get_slice(key).get_dtype() for key in file.keys()}
        for name, dtype in (("BF16", torch.bfloat16), ("F16", torch.float16)):
            if name in found:
                return dtype
    return torch.float32


def _each(generator: torch.Generator | Sequence[torch.Generator] | None, count: int) -> list[torch.Generator]:
    if generator is None:
        generator = torch.Generator()
        generator.seed()
    generators = [generator] * count if isinstance(generator, torch.Generator) else list(generator)
    if len(generators) != count:
        raise UserError(
            f"expected one generator, or one for each of the {count} pictures, got {len(generators)}"
        )
    if any(g.device.type != "cpu" for g in generators):  # a GPU's generator draws other noise on other GPUs
        raise UserError("the generator must be on the CPU, so that a seed is the same picture everywhere")
    return generators
