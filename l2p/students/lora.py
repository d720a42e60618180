"""LoRA adapters on the linear layers of a student's core (arXiv 2106.09685), by `peft`.

The core's own weights are kept as the teacher gave them; a layer W becomes ``W + alpha / rank B A`` with A random and B
zero, so that at step zero nothing has changed. On disk the adapters lie apart, in peft's own two files, beside a
``model.safetensors`` that is a whole student without them.
"""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from l2p.errors import UserError
from l2p.extras import install_hint
from l2p.files import write_json
from l2p.students import weights

if TYPE_CHECKING:
    from l2p.students.student import PixelStudent

ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
NAME = "default"  # peft's name of the only adapter


def lora_of(student: PixelStudent) -> dict[str, Any] | None:
    """``rank``, ``alpha`` and ``targets`` of a student's adapters; None if it has none."""
    config = getattr(student.core, "peft_config", {}).get(NAME)
    if config is None:
        return None
    targets = config.target_modules
    return {"rank": config.r, "alpha": config.lora_alpha, "targets": sorted(targets)}


def check_peft() -> None:
    """Raises UserError where peft is not installed."""
    if importlib.util.find_spec("peft") is None:
        raise UserError(f"student.lora needs peft: {install_hint('lora')}")


def add_lora(student: PixelStudent, rank: int, alpha: float, targets: list[str], empty: bool = False) -> None:
    """Put fresh adapters into the core's linear layers whose names end in one of `targets`; the rest stays as it is.

    Adapters take device and dtype of their layers.

    Args:
        empty: leave the adapters without values (on the meta device), to be filled from a file.

    Raises:
        UserError: peft is not installed, or a target that the core does not have.
    """
    check_peft()
    from peft import LoraConfig, inject_adapter_in_model

    linears = [name for name, module in student.core.named_modules() if isinstance(module, nn.Linear)]
    for target in targets:
        if not any(name.endswith(f".{target}") for name in linears):
            inside = [name for name in linears if re.search(r"\.\d+\.", name)]
            last = sorted({re.split(r"\.\d+\.", name, maxsplit=1)[1].split(".", 1)[-1] for name in inside})
            raise UserError(
                f"student.lora.targets names {target!r}, which no linear layer of the core ends in; it has "
                f"{', '.join(last)}"
            )
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets), lora_dropout=0.0, bias="none")
    trained = {name: p.requires_grad for name, p in student.named_parameters()}
    inject_adapter_in_model(config, student.core, NAME, low_cpu_mem_usage=empty)
    for name, parameter in student.named_parameters():  # peft freezes all else, which is not its to decide
        parameter.requires_grad_(trained.get(name.replace(".base_layer", ""), True))


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name is an adapter's."""
    return ".lora_A." in name or ".lora_B." in name


def plain_state(student: PixelStudent) -> dict[str, Tensor]:
    """The state of the same student without its adapters, under the names that one has."""
    state = student.state_dict()
    return {name.replace(".base_layer", ""): v for name, v in state.items() if not is_adapter(name)}


def merged(student: PixelStudent) -> PixelStudent:
    """A student whose layers hold the products of its adapters; itself where it has none. `student` is changed too."""
    if lora_of(student) is None:
        return student
    from peft.tuners.lora import LoraLayer

    from l2p.students.student import PixelStudent

    for module in student.core.modules():
        if isinstance(module, LoraLayer):
            module.merge()
    with torch.device("meta"):
        plain = PixelStudent(student.spec)
    plain.load_state_dict(plain_state(student), strict=True, assign=True)
    return plain.to(student.device).train(student.training)  # some cores have tables that no file holds


def write_lora(student: PixelStudent, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write peft's two files of a student's adapters."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    state = get_peft_model_state_dict(student.core, adapter_name=NAME)
    save_file({k: v.detach().to(dtype or v.dtype).contiguous() for k, v in state.items()}, folder / ADAPTER)
    config = student.core.peft_config[NAME].to_dict()
    config = {key: sorted(v) if isinstance(v, set) else v for key, v in config.items()}
    write_json(folder / ADAPTER_CONFIG, {**config, "inference_mode": True})


def read_lora(student: PixelStudent, folder: Path, lora: Any, device: torch.device | str) -> None:
    """Give a student, whose weights are loaded, the adapters of a folder.

    Args:
        lora: ``rank``, ``alpha`` and ``targets`` as the folder's config has them.

    Raises:
        UserError: peft is not installed, or anything but complete, matching, finite weights.
    """
    fits = (
        isinstance(lora, dict)
        and lora.keys() == {"rank", "alpha", "targets"}
        and type(lora["rank"]) is int
        and 0 < lora["rank"] <= 65536
        and type(lora["alpha"]) in (int, float)
        and isinstance(lora["targets"], list)
        and all(isinstance(target, str) for target in lora["targets"])
    )
    if not fits:
        raise UserError(f"{folder} has lora {json.dumps(lora)}, expected a rank, an alpha and targets")
    add_lora(student, **lora, empty=True)
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    expected = get_peft_model_state_dict(student.core, adapter_name=NAME)
    entries = weights.entries_of(folder / ADAPTER)
    weights.check_entries(expected, entries, folder)
    state = weights.read_weights(entries, device)
    weights.check_finite(state, folder)
    set_peft_model_state_dict(student.core, state, adapter_name=NAME, low_cpu_mem_usage=True)
