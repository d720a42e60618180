"""The demo: prompt, seed, size and path in, a picture and its latency out."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from l2p.errors import UserError
from l2p.review.serving import LOCAL, new_app, page

SIDE = 8  # pixels; a side is a multiple of it
MAX_SIDE = 2048
MAX_SEED = 2**31 - 1
MAX_PROMPT = 1000  # characters


@dataclass(frozen=True)
class Wish:
    """A request that can be drawn; ``path`` is "l2p" or "vae"."""

    prompt: str
    seed: int
    height: int
    width: int
    path: str

    @classmethod
    def check(cls, given: dict[str, Any]) -> Wish:
        """Raises UserError for what cannot be drawn."""
        prompt = given.get("prompt")
        if not isinstance(prompt, str) or not prompt.strip() or len(prompt) > MAX_PROMPT:
            raise UserError(f"the prompt must be a text of 1 to {MAX_PROMPT} characters")
        numbers = {key: given.get(key) for key in ("seed", "height", "width")}
        for key, value in numbers.items():
            if not isinstance(value, int) or isinstance(value, bool):
                raise UserError(f"{key} must be a whole number")
        if not 0 <= numbers["seed"] <= MAX_SEED:
            raise UserError(f"seed must lie between 0 and {MAX_SEED}")
        for key in ("height", "width"):
            if not SIDE <= numbers[key] <= MAX_SIDE or numbers[key] % SIDE:
                raise UserError(f"{key} must be a multiple of {SIDE} from {SIDE} to {MAX_SIDE}")
        path = given.get("path")
        if path not in ("l2p", "vae"):
            raise UserError("path must be l2p (the student) or vae (its teacher and decoder)")
        return cls(prompt.strip(), **numbers, path=path)


class Painter:
    """A student's folder, and its teacher once it is asked for; one picture at a time. The page calls it `name`."""

    def __init__(
        self, student: str | Path, device: str = "auto", dtype: str = "auto", name: str | None = None
    ) -> None:
        from l2p.students.origin import teacher_config
        from l2p.students.pipeline import load

        self.teacher = teacher_config(student)
        self.name = name or Path(student).resolve().name
        self.pipeline = load(student, device, dtype)
        self._teacher: dict[tuple[int, int], Any] = {}
        self._lock = threading.Lock()

    @property
    def about(self) -> dict[str, Any]:
        """What the page shows first."""
        spec = self.pipeline.student.spec
        return {
            "name": self.name,
            "height": spec.height or 128,
            "width": spec.width or 128,
            "paths": ["l2p", *(["vae"] if self.teacher else [])],
            "device": str(self.pipeline.device),
        }

    def draw(self, wish: Wish) -> tuple[np.ndarray, float]:
        """The picture, uint8 [H, W, 3], and the milliseconds from prompt to picture (a teacher's loading left out)."""
        with self._lock:
            size = (wish.height, wish.width)
            paint = self.pipeline.generate if wish.path == "l2p" else self._teacher_of(size)
            start = time.perf_counter()
            image = paint(wish.prompt, seeds=wish.seed, height=wish.height, width=wish.width)[0]
            return np.asarray(image), 1000 * (time.perf_counter() - start)

    def _teacher_of(self, size: tuple[int, int]):
        from l2p.review.pairs import teacher_painter

        if self.teacher is None:
            raise UserError("this student does not say which teacher it comes from: choose the path l2p")
        cell = self.pipeline.student.spec.patch_size
        if size[0] % cell or size[1] % cell:
            raise UserError(f"the teacher draws multiples of {cell} pixels: choose another size")
        if size not in self._teacher:
            sized = replace(self.teacher, height=size[0], width=size[1])
            self._teacher = {size: teacher_painter(sized, self.pipeline)}
        return self._teacher[size]


def demo_app(painter: Painter, host: str = LOCAL):
    """The application (FastAPI) around a painter."""
    from fastapi.responses import HTMLResponse

    from l2p.evaluation.history import png_uri

    app = new_app(host)

    @app.get("/", response_class=HTMLResponse)
    def index() -> str:
        return page("demo.html")

    @app.get("/api/about")
    def about() -> dict[str, Any]:
        return painter.about

    @app.post("/api/draw")
    def draw(given: dict[str, Any]) -> dict[str, Any]:
        picture, milliseconds = painter.draw(Wish.check(given))
        return {"picture": png_uri(picture), "milliseconds": round(milliseconds, 1)}

    return app
