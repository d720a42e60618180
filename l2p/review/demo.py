"""The demo: prompt, seed, size and path in, a picture and its latency out."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from l2p.errors import UserError
from l2p.review.serving import LOCAL, new_app, page

if TYPE_CHECKING:
    from l2p.decoders.decode import PidDecoder
    from l2p.evaluation.references import TeacherPictures
    from l2p.images import Pictures

DECODER = "landscapes-4x"  # of the path pid, where none is named
PATHS = ("l2p", "vae", "pid")

SIDE = 8  # pixels; a side is a multiple of it
MAX_SIDE = 2048
MAX_SEED = 2**31 - 1
WAITING = 8  # pictures drawn or waited for at once: more would take the threads that answer everything else
MAX_PROMPT = 1000  # characters


@dataclass(frozen=True)
class DrawRequest:
    """A request that can be drawn; ``path`` is "l2p", "vae" or "pid"."""

    prompt: str
    seed: int
    height: int
    width: int
    path: str

    @classmethod
    def check(cls, given: dict[str, Any]) -> DrawRequest:
        """Raises UserError for what cannot be drawn."""
        prompt = given.get("prompt")
        if not isinstance(prompt, str) or not prompt.strip() or len(prompt) > MAX_PROMPT:
            raise UserError(f"the prompt must be a text of 1 to {MAX_PROMPT} characters")
        if any("\ud800" <= c <= "\udfff" for c in prompt):  # JSON may hold half a character
            raise UserError("the prompt holds a character that is none")
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
        if path not in PATHS:
            raise UserError(
                "path must be l2p (the student), vae (its teacher and decoder) or pid (teacher and pixel decoder)"
            )
        return cls(prompt.strip(), **numbers, path=path)


class DemoModels:
    """A student's folder, and its teacher and decoder once they are asked for; one picture at a time.

    Args:
        name: what the page calls it; the folder's name if None.
        decoder: name or folder of a pixel diffusion decoder for the path pid; None takes the bundled one where it is
            of the student's teacher.

    Raises:
        UserError: ``decoder`` is none, or the student names no teacher whose latents it could decode.
    """

    def __init__(
        self,
        student: str | Path,
        device: str = "auto",
        dtype: str = "auto",
        name: str | None = None,
        decoder: str | None = None,
    ) -> None:
        from l2p.students.origin import teacher_config
        from l2p.students.pipeline import load

        self.teacher = teacher_config(student)
        self.decoder, self.scale = self._find(decoder)
        self.name = name or Path(student).resolve().name
        self.pipeline = load(student, device, dtype)
        self._source: TeacherPictures | None = None
        self._pid: PidDecoder | None = None
        self._lock, self._places = threading.Lock(), threading.BoundedSemaphore(WAITING)

    def _find(self, decoder: str | None) -> tuple[Path | None, int]:
        """Folder and scale of the decoder; none where the bundled one is of another teacher."""
        from l2p.decoders.io import find_decoder, read_spec

        if self.teacher is None:
            if decoder is not None:
                raise UserError(
                    "--pid decodes what a teacher draws, and this student does not say which it has"
                )
            return None, 1
        folder = find_decoder(decoder or DECODER)
        spec = read_spec(folder)
        fits = decoder is not None or spec.teacher.get("name") == self.teacher.path
        return (folder, spec.scale) if fits else (None, 1)

    @property
    def about(self) -> dict[str, Any]:
        """What the page shows first."""
        spec = self.pipeline.student.spec
        paths = ["l2p", *(["vae"] if self.teacher else []), *(["pid"] if self.decoder else [])]
        return {
            "name": self.name,
            "height": spec.height or 128,
            "width": spec.width or 128,
            "paths": paths,
            "scale": self.scale,
            "device": str(self.pipeline.device),
        }

    def draw(self, request: DrawRequest) -> tuple[Pictures, float]:
        """The picture, uint8 [H, W, 3], and the milliseconds from prompt to picture (what is loaded first left out).

        The path pid paints ``scale`` times the size that is wished for.
        """
        if not self._places.acquire(blocking=False):
            raise UserError(f"{WAITING} pictures are wished for already: try again in a moment")
        try:
            with self._lock:
                if request.path != "l2p":
                    self._load(request)
                start = time.perf_counter()
                picture = self._paint(request)
                return picture, 1000 * (time.perf_counter() - start)
        finally:
            self._places.release()

    def _paint(self, request: DrawRequest) -> Pictures:
        from l2p.decoders.sources import Source

        size = (request.height, request.width)
        if request.path == "l2p":
            return np.asarray(
                self.pipeline.generate(request.prompt, seeds=request.seed, height=size[0], width=size[1])[0]
            )
        noise = self._source.noise([request.seed], *size)
        z = self._source.sample([request.prompt], noise, self.teacher.num_inference_steps)
        if request.path == "vae":
            return self._source.decode(z)[0]
        return self._pid(Source(z.float(), 0.0, *size, request.prompt), request.seed)

    def _load(self, request: DrawRequest) -> None:
        """Teacher and decoder, once. Raises UserError for a request that they cannot fulfil."""
        from l2p.decoders.decode import PidDecoder
        from l2p.decoders.io import load_decoder
        from l2p.review.pairs import teacher_source

        if self.teacher is None:
            raise UserError("this student does not say which teacher it comes from: choose the path l2p")
        cell = self.pipeline.student.spec.patch_size
        if request.height % cell or request.width % cell:
            raise UserError(f"the teacher draws multiples of {cell} pixels: choose another size")
        if request.path == "pid":
            if self.decoder is None:
                raise UserError(
                    "no decoder of this teacher's latents is at hand: name one with l2p demo --pid"
                )
            if self.scale * max(request.height, request.width) > MAX_SIDE:
                raise UserError(
                    f"the path pid paints {self.scale} times as large: choose at most {MAX_SIDE // self.scale} pixels"
                )
        if self._source is None:
            self._source = teacher_source(self.teacher, self.pipeline)
        if request.path == "pid" and self._pid is None:
            network, teacher = load_decoder(self.decoder, self.pipeline.device), self._source.teacher
            if network.spec.geometry != teacher.geometry:
                raise UserError(
                    f"the decoder {self.decoder} is of other latents than those of {self.teacher.path}"
                )
            self._pid = PidDecoder(network, None, self.pipeline.dtype, teacher.encode_prompts)


def demo_app(models: DemoModels, host: str = LOCAL):
    """The application (FastAPI) around a models."""
    from fastapi.responses import HTMLResponse

    from l2p.evaluation.history import png_uri

    app = new_app(host)

    @app.get("/", response_class=HTMLResponse)
    def index() -> Any:
        return page("demo.html")

    @app.get("/api/about")
    def about() -> dict[str, Any]:
        return models.about

    @app.post("/api/draw")
    def draw(given: dict[str, Any]) -> dict[str, Any]:
        picture, milliseconds = models.draw(DrawRequest.check(given))
        height, width = picture.shape[:2]
        return {
            "picture": png_uri(picture),
            "milliseconds": round(milliseconds, 1),
            "height": height,
            "width": width,
        }

    return app
