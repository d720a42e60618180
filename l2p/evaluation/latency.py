"""Wall-clock time of one picture, prompt to 8-bit, of several paths side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from l2p.evaluation.references import TeacherPictures
    from l2p.recipe import EvaluationConfig
    from l2p.students.pipeline import StudentPipeline


def median_latency(
    paths: Mapping[str, Callable[[int], object]],
    runs: int = 5,
    device: torch.device | str = "cpu",
    before: Callable[[], object] | None = None,
) -> dict[str, float]:
    """Median milliseconds of each path.

    The paths take turns in every round, so that a machine that gets busy slows all of them and not the last one.

    Args:
        paths: name to a function of the round's number that makes one picture.
        runs: timed rounds, at least 1; one untimed round goes first.
        before: called untimed before each picture (for example to empty a cache that would flatter the later paths).
    """
    if runs < 1:
        raise ValueError(f"{runs=} must be at least 1")
    on_gpu = torch.device(device).type == "cuda"
    seconds: dict[str, list[float]] = {name: [] for name in paths}
    for number in range(-1, runs):
        for name, make in paths.items():
            if before is not None:
                before()
            if on_gpu:
                torch.cuda.synchronize(device)
            start = time.perf_counter()
            make(number)
            if on_gpu:
                torch.cuda.synchronize(device)
            if number >= 0:
                seconds[name].append(time.perf_counter() - start)
    return {name: 1000 * statistics.median(values) for name, values in seconds.items()}


def paths_latency(
    source: TeacherPictures | None,
    methods: Mapping[str, StudentPipeline],
    captions: Sequence[str],
    config: EvaluationConfig,
    size: tuple[int, int],
    first_seed: int,
) -> dict[str, float]:
    """Milliseconds from one prompt to one 8-bit picture of each path; captions are read anew each time.

    Args:
        source: the teacher, timed with its many steps and with one; None leaves it out.
        size: height and width in pixels.
    """

    def teacher(num_steps: int) -> Callable[[int], object]:
        def draw(number: int) -> object:
            noise = source.noise([first_seed + number % config.num_images], *size)
            return source.draw([captions[number % len(captions)]], noise, num_steps)

        return draw

    def student(method: StudentPipeline) -> Callable[[int], object]:
        def draw(number: int) -> object:
            seed = first_seed + number % config.num_images
            return method.generate(
                captions[number % len(captions)], seeds=seed, height=size[0], width=size[1]
            )

        return draw

    def forget() -> None:
        for encoder in {id(method): method.text_encoder for method in methods.values()}.values():
            encoder.forget()

    paths = {}
    if source is not None:
        paths = {"teacher": teacher(source.config.num_inference_steps), "teacher_one_step": teacher(1)}
    paths |= {name: student(method) for name, method in methods.items()}
    device = next(iter(methods.values())).device
    return median_latency(paths, config.latency_runs, device, before=forget)
