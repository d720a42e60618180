"""Decode latents, pictures or prompts to pictures of one, two, four or eight times the side.

INPUT is a safetensors file of latents, a picture (encoded first), or a folder of either; with --teacher it may be a prompt,
which the teacher draws, to the end or to a noise level. What looks like a path is never taken for a prompt. Files of a batch that cannot be decoded are told
and passed over; pictures that are there already, of the same input, weights and settings, are not decoded again."""

from __future__ import annotations

import argparse
import json
import os
import time
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l2p.cli.options import Mode, NoiseLevel, PictureSeed, PictureSide, check_modes, number_type, text_type
from l2p.config import GuidanceScale, SamplingSteps, Threads
from l2p.errors import UserError, warn
from l2p.files import check_outputs

if TYPE_CHECKING:
    from l2p.decoders.decode import PidDecoder, VaeDecoder
    from l2p.published.decoding import PublishedDecoder
    from l2p.teachers.protocol import Teacher

EXAMPLES = """\
examples:
  l2p decode photo.jpg --out large.png
  l2p decode latents/ photos/ --decoder pid --scale 4 --steps 1 --out decoded
  l2p decode latents.safetensors --decoder vae --scale 4 --out baseline.png
  l2p decode latents.safetensors --weights pid-flux --text-encoder google/gemma-2-2b-it --prompt "a red house" --out house.png
  l2p decode "a red house by a lake at dusk" --teacher landscapes --stop-at-sigma 0.3 --out house.png

exit code 1: some files of a batch could not be decoded
"""
WHEN_STOPPED = "; run the same command again, it goes on from here"
BUNDLED = "landscapes-4x"
SETTINGS = ("decoder", "scale", "steps", "seed", "text_encoder", "memory_budget")  # that decide a picture
OF_A_PROMPT = ("stop_at_sigma", "teacher_steps", "guidance_scale", "height", "width")
PROMPTS = Mode("a prompt and --teacher", (*OF_A_PROMPT, "seed"))
VAE = Mode("--decoder vae", ())
PID = Mode("--decoder pid", ("weights", "steps", "memory_budget", "text_encoder", "seed"))
PID_FILES = Mode("files and --decoder pid", ("prompt",))
FILES = Mode("files", ("sigma",))
MODES = (PROMPTS, FILES, VAE, PID, PID_FILES)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "inputs",
        metavar="INPUT",
        nargs="*",
        type=text_type,
        help="latents (.safetensors), pictures, folders of them, or prompts",
    )
    parser.add_argument(
        "--prompt-input",
        action="append",
        default=[],
        type=text_type,
        metavar="TEXT",
        help="a prompt for the teacher, also one that looks like a path; repeatable",
    )
    parser.add_argument(
        "--decoder", choices=("pid", "vae"), default="pid", help="pid, or the teacher's VAE (pid)"
    )
    parser.add_argument(
        "--weights",
        metavar="FOLDER",
        default=BUNDLED,
        help=f"of the pid decoder, as `l2p train-pid` or `l2p import` writes it ({BUNDLED})",
    )
    parser.add_argument(
        "--text-encoder",
        metavar="FOLDER|NAME",
        help="what reads captions for an imported decoder (google/gemma-2-2b-it); else it gets none",
    )
    parser.add_argument(
        "--scale", type=int, choices=(1, 2, 4, 8), help="times the side; else the decoder's own"
    )
    parser.add_argument(
        "--steps",
        type=number_type(SamplingSteps),
        metavar="N",
        help="of the pid decoder, such as 1 or 4; else as trained",
    )
    parser.add_argument(
        "--teacher",
        metavar="FOLDER|NAME",
        help="whose latents they are; else the decoder's own. Given, inputs that are no paths are prompts",
    )
    parser.add_argument(
        "--prompt", help="caption of the files, where they do not say; the decoder needs none"
    )
    parser.add_argument(
        "--stop-at-sigma",
        type=number_type(NoiseLevel),
        metavar="S",
        help="end the teacher's sampling of a prompt at this noise level",
    )
    parser.add_argument(
        "--sigma",
        type=number_type(NoiseLevel),
        metavar="S",
        help="noise level of the files' latents; else what they say",
    )
    parser.add_argument(
        "--teacher-steps",
        type=number_type(SamplingSteps),
        default=20,
        metavar="N",
        help="of a prompt's sampling (20)",
    )
    parser.add_argument(
        "--guidance-scale", type=number_type(GuidanceScale), default=1.0, help="of a prompt's sampling (1)"
    )
    parser.add_argument(
        "--height",
        type=number_type(PictureSide),
        help="of a prompt's small picture; else as the teacher was trained",
    )
    parser.add_argument("--width", type=number_type(PictureSide), help="likewise")
    parser.add_argument("--seed", type=number_type(PictureSeed), default=0, help="of all noise (0)")
    parser.add_argument(
        "--out", metavar="FILE|FOLDER", default="decoded", help="a .png for one input, or a folder"
    )
    parser.add_argument("--again", action="store_true", help="decode anew what is there already")
    parser.add_argument("--json", action="store_true", help="print what was done as JSON")
    parser.add_argument(
        "--memory-budget", metavar="SIZE", help="beyond the weights, such as 1.5GB (2GB); beyond: tiles"
    )
    parser.add_argument("--threads", type=number_type(Threads), help="else all usable cores")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument("--dtype", default="auto", help="auto, bf16, fp16 or fp32")


def run(args: argparse.Namespace) -> int:
    if not args.inputs and not args.prompt_input:
        raise UserError(
            "nothing to decode: name latents, pictures or folders of them, or a prompt and --teacher"
        )
    tasks = _tasks(args)
    _check_options(args, of_prompts=tasks[0][1] is not None)
    folder, file = _check_out(args.out, len(tasks))
    check_outputs([folder / (file or name) for name, _ in tasks], getattr(args, "files", ()))
    from l2p import runtime
    from l2p.artifacts import UNKNOWN, why_not
    from l2p.terminal import say

    runtime.setup(args.threads)
    runtime.silence_libraries()
    tools = Tools(args)
    rows, failures = [], 0
    for number, (name, prompt) in enumerate(tasks):
        path = folder / (file or name)
        row: dict[str, Any] = {"input": prompt or args.files[number], "path": str(path)}
        made_from = tools.made_from(row["input"], prompt)
        reason = why_not(path, made_from) if path.is_file() and not args.again else None
        if path.is_file() and not args.again and reason is None:
            row["status"] = "there already"
        else:
            try:
                if reason == UNKNOWN:
                    raise UserError(
                        f"{path} is there and was not made by l2p decode: choose another --out, or --again to replace it"
                    )
                if reason is not None:
                    say(f"{path} is made anew ({reason})")
                row |= {"status": "decoded", **tools.decode(row["input"], prompt, path, made_from)}
            except UserError as error:
                if len(tasks) == 1:
                    raise
                row |= {"status": "failed", "reason": str(error)}
                failures += 1
        rows.append(row)
        if not args.json:
            print(f"[{number + 1}/{len(tasks)}] {_line(row)}", flush=True)
    if args.json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
    elif failures:
        print(f"{failures} of {len(tasks)} could not be decoded")
    return int(bool(failures))


class Tools:
    """Decoder and teacher, each loaded when it is first needed."""

    def __init__(self, args: argparse.Namespace) -> None:
        from l2p import runtime

        self.args = args
        self.device = runtime.pick_device(args.device)
        self.dtype = runtime.pick_dtype(args.dtype, self.device)
        self._teacher: Teacher | None = None
        self.student, self.published = None, False
        if args.decoder == "pid":
            from l2p.decoders.io import load_decoder
            from l2p.published.pid import is_pid_folder, load_pid

            self.published = is_pid_folder(args.weights)
            if self.published and args.memory_budget:
                raise UserError("an imported decoder paints whole pictures: leave out --memory-budget")
            if self.published:
                self.student = load_pid(args.weights, self.device, self.dtype)
            else:
                self.student = load_decoder(args.weights, self.device)
            spec = self.student.spec
            if args.scale not in (None, spec.scale):
                raise UserError(
                    f"--scale is {args.scale}, the decoder in {args.weights} enlarges {spec.scale} times"
                )
            level = args.stop_at_sigma or args.sigma or 0.0
            if level > spec.max_sigma:
                raise UserError(
                    f"a noise level of {level:g} is beyond the {spec.max_sigma:g} that the decoder was trained to"
                )
        if args.text_encoder and not self.published:
            raise UserError(
                "--text-encoder reads captions for an imported decoder; others read them with their teacher's"
            )
        self._decoder: VaeDecoder | PidDecoder | PublishedDecoder | None = None

    @property
    def teacher(self) -> Teacher:
        if self._teacher is None:
            from l2p import runtime
            from l2p.teachers import load_teacher

            kind = runtime.frozen_dtype(self.device, self.dtype)
            self._teacher = load_teacher(self.teacher_name, device=self.device, dtype=kind)
        return self._teacher

    @property
    def decoder(self) -> VaeDecoder | PidDecoder | PublishedDecoder:
        if self._decoder is None:
            from l2p.decoders.decode import PidDecoder, VaeDecoder
            from l2p.runtime import parse_bytes
            from l2p.students.tiled_inference import BUDGET

            if self.student is None:
                self._decoder = VaeDecoder(self.teacher, self.args.scale or 1, self.dtype)
            elif self.published:
                from l2p.published.decoding import PublishedDecoder, caption_reader

                captions = caption_reader(self.args.text_encoder, self.args.prompt, self.student)
                self._decoder = PublishedDecoder(self.student, self.args.steps, captions)
            else:
                budget = parse_bytes(self.args.memory_budget) if self.args.memory_budget else BUDGET
                self._decoder = PidDecoder(
                    self.student,
                    self.args.steps,
                    self.dtype,
                    lambda texts: self.teacher.encode_prompts(texts),
                    budget,
                )
        return self._decoder

    @property
    def teacher_name(self) -> str:
        own = self.student.spec.teacher.get("name") if self.student else "landscapes"
        return self.args.teacher or own

    def made_from(self, name: str, prompt: str | None) -> dict[str, Any]:
        """All that decides the picture of an input: the input's own bytes or its prompt, weights and settings."""
        from l2p.artifacts import hash_file
        from l2p.teachers import teacher_sha256

        args = self.args
        kept = {key: getattr(args, key) for key in SETTINGS}
        if prompt is None:
            kept |= {"input_sha256": hash_file(name), "prompt": args.prompt, "sigma": args.sigma}
        else:
            kept |= {key: getattr(args, key) for key in OF_A_PROMPT} | {"prompt": prompt}
        teacher = teacher_sha256(self.teacher_name)
        kept |= {"teacher_sha256": teacher, "weights_sha256": self._weights_sha256}
        return kept | {"dtype": str(self.dtype).removeprefix("torch."), "device": self.device.type}

    @cached_property
    def _weights_sha256(self) -> str | None:
        if self.student is None:
            return None
        from l2p.artifacts import hash_model
        from l2p.decoders.io import find_decoder

        return hash_model(self.args.weights if self.published else find_decoder(self.args.weights))

    def decode(self, name: str, prompt: str | None, path: Path, made_from: dict[str, Any]) -> dict[str, Any]:
        """One input to a PNG; what was done."""
        from l2p.images import save_png

        source, facts = self.draw(prompt) if prompt is not None else (self.read(Path(name)), {})
        started = time.perf_counter()
        picture = self.decoder(source, self.args.seed)
        seconds = time.perf_counter() - started
        save_png(picture, path, made_from)
        height, width = picture.shape[:2]
        return {
            "height": height,
            "width": width,
            "sigma": round(source.sigma, 4),
            **facts,
            "decoder_seconds": round(seconds, 3),
        }

    def read(self, path: Path):
        from l2p.decoders.sources import read_source

        latents = path.suffix.lower() == ".safetensors"
        geometry = self.student.spec.geometry if self.student is not None else self.teacher.geometry
        source = read_source(
            path, geometry, None if latents else self.teacher, self.args.sigma, self.args.seed
        )
        source.prompt = source.prompt if self.args.prompt is None else self.args.prompt
        return source

    def draw(self, prompt: str):
        """The teacher's latents of a prompt, and what stopping early saved."""
        from l2p.decoders.early_stop import sample
        from l2p.runtime import autocast

        args, teacher = self.args, self.teacher
        side = teacher.vae.config.get("sample_size") or 1024
        with autocast(self.device, self.dtype):
            source, facts = sample(
                teacher,
                prompt,
                args.seed,
                args.height or side,
                args.width or side,
                args.teacher_steps,
                args.guidance_scale,
                args.stop_at_sigma or 0.0,
            )
        if args.stop_at_sigma is not None and not facts["steps_skipped"]:
            warn(
                f"--stop-at-sigma {args.stop_at_sigma:g} skips none of {args.teacher_steps} steps: the last one begins above "
                "it; take a higher level, or more --teacher-steps"
            )
        return source, facts


def _tasks(args: argparse.Namespace) -> list[tuple[str, str | None]]:
    """Name of the picture and prompt (None for files) of each input; ``args.files`` gets the files."""
    from l2p.decoders.sources import find_files
    from l2p.files import names_input, no_such
    from l2p.names import prompt_names, unique

    prompts, paths = list(args.prompt_input), []
    for text in args.inputs:
        as_path = names_input(text)
        if os.path.exists(text):
            if args.teacher and not as_path and "/" not in text and os.sep not in text and "." not in text:
                raise UserError(
                    f"{text!r} is here and could be a prompt too: write ./{text}, or --prompt-input {text!r}"
                )
            paths.append(text)
        elif as_path:
            if os.path.isfile(text.rpartition("#")[0]):
                raise UserError(
                    f"{text} is a table: l2p decode takes latents, pictures and prompts, one by one"
                )
            raise no_such(text, f"--prompt-input {text!r} draws these words" if args.teacher else "")
        elif args.teacher:
            prompts.append(text)
        else:
            raise no_such(text, "a prompt needs --teacher")
    if prompts and paths:
        raise UserError(f"{paths[0]} is a file and {prompts[0]!r} a prompt: decode them by two commands")
    if prompts:
        if not args.teacher:
            raise UserError("--prompt-input is drawn by a teacher: name it with --teacher")
        return list(zip(prompt_names(prompts), prompts, strict=True))
    args.files = [str(path) for path in find_files(paths)]
    names = unique([f"{Path(file).stem}.png" for file in args.files])
    return [(name, None) for name in names]


def _check_options(args: argparse.Namespace, of_prompts: bool) -> None:
    active = {PROMPTS if of_prompts else FILES, PID if args.decoder == "pid" else VAE}
    check_modes(args, MODES, active | ({PID_FILES} if active == {FILES, PID} else set()))


def _check_out(out: str, count: int) -> tuple[Path, str | None]:
    from l2p.files import check_writable

    path = Path(out)
    if path.suffix and not path.is_dir():
        if path.suffix.lower() != ".png":
            raise UserError(f"--out is {out}, expected a file that ends in .png, or a folder")
        if count > 1:
            raise UserError(f"--out is one file for {count} inputs: give a folder")
        check_writable(path.parent)
        return path.parent, path.name
    check_writable(path)
    return path, None


def _line(row: dict[str, Any]) -> str:
    if row["status"] == "failed":
        return f"{row['input']}  failed: {row['reason']}"
    if row["status"] != "decoded":
        return f"{row['path']}  {row['status']}"
    told = f"{row['path']}  {row['width']} x {row['height']}  {row['decoder_seconds']:.2f} s"
    if row["sigma"]:
        told += f"  from noise level {row['sigma']:g}"
    if row.get("steps_skipped"):
        told += f"  {row['steps_skipped']} of {row['teacher_steps']} teacher steps skipped, {row['seconds_saved']:.2f} s saved"
    return told
