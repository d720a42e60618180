"""The model card: what the folder itself can prove, in tables, and metadata that the Hub's library accepts.

A figure that was not measured is left out and named as missing; nothing is estimated.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from l2p.errors import UserError, printable
from l2p.features import is_non_commercial
from l2p.files import DATA, read_json, write_text
from l2p.hub.client import HubName
from l2p.objectives import networks_seen
from l2p.students.io import read_config
from l2p.students.lora import ADAPTER
from l2p.students.weights import read_entries

LICENSES = "apache-2.0 mit openrail creativeml-openrail-m openrail++ bsd-3-clause cc-by-4.0 cc-by-nc-4.0 cc0-1.0 gemma"
MARKUP = frozenset("<>&|`[]*!\\")  # of Markdown and HTML
METHODS = {
    "teacher": "teacher, {teacher_steps} and VAE",
    "teacher_one_step": "teacher, 1 step and VAE",
    "lift": "lift, no training",
    "student": "**this student, {student_steps}**",
    "vae": "VAE of real renders",
    "real": "real renders",
}
RIGHT = {
    "attribute_accuracy": ("attributes right", 100, 1, " %"),
    "frechet": ("Frechet distance to renders", 1, 2, ""),
    "frechet_to_teacher": ("Frechet distance to teacher", 1, 2, ""),
}
INVENTED = {
    "psnr_to_teacher": ("PSNR to the teacher's picture of the same noise", 1, 1, " dB"),
    "detail_ratio": ("finest detail (1 = as clean pictures)", 1, 2, ""),
    "seam_ratio": ("seams at patch borders (1 = none)", 1, 2, ""),
}
MEMORY = """\
Peak memory is of a process that loads the network and its text encoder and draws one picture: what it gains in resident
memory beyond its libraries on a CPU, the most that torch allocates on a GPU."""
LIMITS = """\
- It knows what its teacher knew, and inherits what its teacher gets wrong.
- It was trained at {size}; other sizes are drawn, and their layout may repeat or dissolve.
- Detail that the teacher's picture of the same noise does not have is made up; the second table says how much.
- Figures are of one training run. Distances are on the features of the project's own judge: they are no FID.
"""


def write_card(folder: str | Path, name: str) -> None:
    """Write ``README.md`` into a staged student's folder, from its config, metrics, weights and pictures.

    Args:
        name: what the three lines of code load, ``USER/NAME[@BRANCH]`` once it is published.

    Raises:
        UserError: metadata that the Hub's own library refuses.
    """
    from huggingface_hub import ModelCard

    folder = Path(folder)
    config = read_config(folder)
    metrics = read_json(folder / "metrics.json") if (folder / "metrics.json").is_file() else {}
    try:
        data = _metadata(config, metrics, name)
        text = f"---\n{data.to_yaml()}\n---\n\n{_body(folder, _inert(config), _inert(metrics), _inert(name))}"
        again = ModelCard(text, ignore_metadata_errors=False).data.to_dict()
    except ValueError as error:
        raise UserError(f"the Hub's library refuses this card: {' '.join(str(error).split())}") from error
    if again != data.to_dict():
        raise UserError(
            "the card's metadata do not survive the Hub's library: a name in recipe or metrics is odd"
        )
    write_text(folder / "README.md", text)


def _inert(value: Any) -> Any:
    """`value` with every text in it as a page shows it: no HTML, no link, no table's border, one line.

    A student's config and figures may come from a stranger, and the card is a page on the Hub.
    """
    if isinstance(value, dict):
        return {key: _inert(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_inert(item) for item in value]
    if not isinstance(value, str):
        return value
    return "".join(f"&#{ord(c)};" if c in MARKUP else c for c in printable(" ".join(value.split())))


def _is_on_hub(name: str) -> bool:
    return HubName.parse(name) is not None and not name.endswith(DATA) and not Path(name).exists()


def _metadata(config: dict[str, Any], metrics: dict[str, Any], name: str) -> Any:
    from huggingface_hub import EvalResult, ModelCardData

    origin, recipe = _origin(config), config.get("recipe") or {}
    license = str(origin.get("license") or "unknown").lower()
    known = license in LICENSES.split()
    on_hub = _is_on_hub(str(origin.get("name")))
    prompts = str((recipe.get("corpus") or {}).get("prompts") or "")
    student, world = (
        metrics.get("student") or {},
        str((metrics.get("settings") or {}).get("prompts", "prompts")),
    )
    results = [
        EvalResult(
            task_type="text-to-image",
            dataset_type=re.sub(r"\W+", "-", Path(world).name).strip("-") or "prompts",
            dataset_name=f"{_unseen(metrics.get('settings') or {})}prompts of {Path(world).name}",
            metric_type=key,
            metric_name=title,
            metric_value=round(student[key] * factor, 4),
        )
        for key, (title, factor, _, _) in {**RIGHT, **INVENTED}.items()
        if _is_number(student.get(key))
    ]
    return ModelCardData(
        library_name="latent2pixel",
        pipeline_tag="text-to-image",
        license=license if known else "other",
        license_name=None if known else re.sub(r"[^\w.-]+", "-", license),
        base_model=origin["name"] if on_hub else None,
        base_model_relation="finetune" if on_hub else None,
        datasets=[prompts] if _is_on_hub(prompts) else None,
        tags=["pixel-space", *([] if config.get("source") else ["one-step", "distillation"]), "latent2pixel"],
        model_name=_title(name) if results else None,
        eval_results=results or None,
    )


def _body(folder: Path, config: dict[str, Any], metrics: dict[str, Any], name: str) -> str:
    teacher, recipe = _origin(config), config.get("recipe") or {}
    settings = metrics.get("settings") or {}
    title, origin = _title(name), str(teacher.get("name") or "not recorded")
    size = (
        f"{config['width']} x {config['height']} px" if config.get("width") else "a size that is not recorded"
    )
    license = teacher.get("license") or "unknown"
    steps = "one step" if config["num_steps"] == 1 else f"{config['num_steps']} steps"
    parts = [
        f"# {title}",
        f"A pixel-space text-to-image model that paints {size} in {steps}: no VAE, no latents.",
    ]
    if (folder / "pictures.png").is_file():
        parts.append("![Teacher above, student below, from the same noise](pictures.png)")
    call = f'student = l2p.load("{name}")\nstudent.generate("a red house by a lake at dusk", seeds=7)[0].save("a.png")'
    parts += ["## Load it", f"```python\nimport l2p  # pip install latent2pixel\n{call}\n```"]
    if config.get("lora"):
        lora = config["lora"]
        parts.append(
            f"Its core is the teacher's with LoRA adapters of rank {lora['rank']} and alpha {lora['alpha']:g}, which lie "
            f"apart in `{ADAPTER}`."
        )
    if config.get("quantization"):
        parts += ["## Quantised", _quantized(config["quantization"], settings)]
    parts += ["## Time and memory", _costs(folder, metrics, settings)]
    parts += ["## Evaluation", _table(metrics, settings, RIGHT)]
    if any(_is_number(values.get(key)) for values in _methods(metrics).values() for key in INVENTED):
        parts += ["### What was invented or lost on the way", _table(metrics, settings, INVENTED)]
    binding = "The student's weights began as the teacher's, so the teacher's licence binds them"
    if str(license) == "unknown":
        binding += ". **It is not recorded: find it before you use or share this model**"
    revision = f" at revision `{teacher['revision']}`" if teacher.get("revision") else ""
    if config.get("source"):
        parts += ["## Origin and licence", f"Published as `{teacher.get('file', 'unknown')}` of `{origin}`{revision} ({teacher.get('paper', 'unknown')}) and "
                  f"imported: the values are as published. Licence: {license}."]  # fmt: skip
    else:
        parts += ["## Teacher and licence", f"Teacher: `{origin}`{revision}. Licence: {license}. {binding}."]
    seen = networks_seen(recipe) if recipe else {}
    if seen:
        parts += ["### Networks that a loss saw", _networks(seen, settings)]
    made = f"`recipe.yaml` ({recipe.get('name', 'unnamed')}, seed {recipe.get('seed', 'unknown')}) made it"
    parts += [
        "## Recipe",
        f"{made}; `l2p distill recipe.yaml` makes it again." if recipe else "Not recorded.",
    ]
    parts += ["## Limitations", LIMITS.format(size=size)]
    return "\n\n".join(parts).rstrip() + "\n"


def _networks(seen: dict[str, str], settings: dict[str, Any]) -> str:
    rows = ["| network | licence of its weights |", "| --- | --- |"]
    seen = {_inert(name): _inert(license) for name, license in seen.items()}
    rows += [f"| `{name}` | {license} |" for name, license in seen.items()]
    lines = ["\n".join(rows)]
    barred = [f"`{name}`" for name, license in seen.items() if is_non_commercial(license)]
    if barred:
        lines.append(
            f"**{', '.join(barred)}: for non-commercial use only; ask whether that binds this model.**"
        )
    trained = [n for n, about in (settings.get("features") or {}).items() if about.get("trained_on")]
    if trained:
        lines.append(
            f"Distances in the space of {', '.join(f'`{n}`' for n in trained)} are of a space trained on."
        )
    return "\n\n".join(lines)


def _origin(config: dict[str, Any]) -> dict[str, Any]:
    """Name, revision and licence of what the weights were: the published ones of an import, else the teacher's."""
    return config.get("source") or config.get("teacher") or {}


def _title(name: str) -> str:
    return name.split("@")[0].split("/")[-1]


def _quantized(quantization: dict[str, Any], settings: dict[str, Any]) -> str:
    kind = quantization.get("kind")
    lines = [
        f"The core's linear layers hold {kind} weights with a scale an output channel; head and the rest are bf16."
    ]
    if _is_number(quantization.get("psnr")):
        size = f"{quantization.get('width')} x {quantization.get('height')} px"
        lines.append(
            f"What that cost: PSNR {quantization['psnr']:.1f} dB (worst {quantization['psnr_worst']:.1f}) to the pictures "
            f"of the same noise that the student drew before, both in {quantization.get('dtype')}, over "
            f"{quantization.get('num_images')} pictures of {size}."
        )
    else:
        lines.append("What that cost was not measured.")
    if settings and settings.get("quantization") != kind:
        lines.append("Times and figures below are of the student before it was quantised.")
    return " ".join(lines)


def _costs(folder: Path, metrics: dict[str, Any], settings: dict[str, Any]) -> str:
    entries = read_entries(folder).values()
    width = {"F32": 4, "BF16": 2, "F16": 2, "I8": 1, "F8_E4M3": 1}
    weights = sum(math.prod(entry.shape) * width[entry.dtype] for entry in entries)
    kinds = ", ".join(sorted({entry.dtype for entry in entries}))
    lines = [f"Weights in memory, without the text encoder: {weights / 1e6:,.1f} MB ({kinds})."]
    costs = {"latency_ms": "median time, ms", "peak_memory_mb": "peak memory, MB"}
    methods = _methods(metrics)
    costs = {k: title for k, title in costs.items() if any(_is_number(v.get(k)) for v in methods.values())}
    if costs:
        where = f"{settings.get('device')}, {settings.get('threads')} threads, {settings.get('dtype')}"
        size = f"{settings.get('width')} x {settings.get('height')} px"
        rows = [f"| one picture of {size} on {where} | {' | '.join(costs.values())} |"]
        rows.append("| --- |" + " --- |" * len(costs))
        for name, values in methods.items():
            if any(_is_number(values.get(key)) for key in costs):
                cells = [_cell(values.get(key), 1, 1, "") for key in costs]
                rows.append(f"| {_called(name, settings)} | {' | '.join(cells)} |")
        lines.append("\n".join(rows))
        if "peak_memory_mb" in costs:
            lines.append(MEMORY)
    else:
        lines.append("Its speed was not measured.")
    return "\n\n".join(lines)


def _table(
    metrics: dict[str, Any], settings: dict[str, Any], columns: dict[str, tuple[str, int, int, str]]
) -> str:
    methods = _methods(metrics)
    shown = {k: c for k, c in columns.items() if any(_is_number(v.get(k)) for v in methods.values())}
    if not shown:
        return "Not measured."
    head = ["", *(title for title, *_ in shown.values())]
    rows = [
        [_called(name, settings), *(_cell(values.get(key), *shown[key][1:]) for key in shown)]
        for name, values in methods.items()
    ]
    lines = [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
    count = f"{settings.get('num_images', 'unknown')} {_unseen(settings)}prompts of {settings.get('prompts', 'unknown')}"
    if settings.get("seen_prompts"):
        count += f", {settings['seen_prompts']} of them in the training corpus"
    return "\n".join([*lines, "", f"{count}, measured in {settings.get('dtype', 'unknown')}."])


def _unseen(settings: dict[str, Any]) -> str:
    """The word "unseen" where no prompt of the evaluation was in the training corpus, as far as was counted."""
    return "unseen " if settings.get("seen_prompts") == 0 else ""


def _methods(metrics: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: metrics[name] for name in METHODS if isinstance(metrics.get(name), dict)}


def _called(name: str, settings: dict[str, Any]) -> str:
    counts = {key: settings.get(key, "unknown") for key in ("teacher_steps", "student_steps")}
    return METHODS[name].format(**{key: f"{n} step{'' if n == 1 else 's'}" for key, n in counts.items()})


def _cell(value: Any, factor: int, decimals: int, unit: str) -> str:
    return f"{value * factor:,.{decimals}f}{unit}" if _is_number(value) else "-"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
