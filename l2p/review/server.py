"""The review's page and what it asks for. A reviewer's name is all the identity there is."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from l2p.errors import UserError
from l2p.files import leads_out
from l2p.images import open_picture, read_picture
from l2p.review.answers import Answer, Answers, Box, file_name
from l2p.review.pairs import Review
from l2p.review.serving import LOCAL, new_app, page

MAX_BOXES = 50
SHOWN = tuple(f"image/{kind}" for kind in ("png", "jpeg", "webp", "gif", "avif"))  # what browsers show


def review_app(review: Review, folder: str | Path, host: str = LOCAL, sources: Sequence[str | Path] = ()):
    """The application (FastAPI) that asks the pairs of a review and keeps the answers in ``folder/answers``.

    Args:
        sources: what is compared; of these those that are folders, and ``folder``, are all whose pictures are shown: a
            ``review.json`` from elsewhere may name any picture of this machine.
    """
    from fastapi.responses import FileResponse, HTMLResponse, Response

    app = new_app(host)
    places = [Path(place) for place in (folder, *sources) if Path(place).is_dir()]
    answers = Answers(Path(folder) / "answers")

    @app.get("/", response_class=HTMLResponse)
    def index() -> Any:
        return page("review.html")

    @app.get("/api/state")
    def state(reviewer: str) -> dict[str, Any]:
        return _state(review, answers, reviewer)

    @app.get("/api/picture", response_class=FileResponse)
    def picture(reviewer: str, pair: str, side: str) -> Any:
        item = review.pair(pair)
        if item is None or side not in ("left", "right"):
            raise UserError("there is no such picture in this review")
        path = Path(getattr(item, review.sides(reviewer, pair)[side]))
        if all(leads_out(path, place) for place in places):
            raise UserError(
                "this review names a picture outside the folders that it was started with: start a review of your own"
            )
        if not path.is_file():
            raise UserError("the picture is gone from the disk: start the review again")
        if (kind := _media_type(path)) not in SHOWN:
            return Response(_png(path), media_type="image/png")
        return FileResponse(path, media_type=kind)

    @app.post("/api/answer")
    def answer(reviewer: str, given: dict[str, Any]) -> dict[str, Any]:
        answers.add(reviewer, _checked(review, reviewer, given))
        return _state(review, answers, reviewer)

    @app.post("/api/undo")
    def undo(reviewer: str) -> dict[str, Any]:
        taken = answers.undo(reviewer)
        found = _state(review, answers, reviewer)
        if taken is None:
            return found
        sides = {of: side for side, of in review.sides(reviewer, taken.pair).items()} | {"tie": "tie"}
        boxes = [
            {"side": sides[box.of], "x": box.x, "y": box.y, "w": box.w, "h": box.h} for box in taken.boxes
        ]
        before = {"follows": sides[taken.follows], "real": sides[taken.real], "boxes": boxes}
        return {**found, "pair": _shown(review, taken.pair), "before": before}

    return app


def _media_type(path: Path) -> str:
    """The type of a picture, from its content. Raises UserError for another file: a review folder from elsewhere may name
    any file of this machine."""
    from PIL import Image

    try:
        with open_picture(path, str(path)) as image:
            kind = Image.MIME.get(image.format or "", "")
    except (UserError, OSError):
        kind = ""
    if not kind.startswith("image/"):
        raise UserError("what this review names is no picture: start a review of your own")
    return kind


def _png(path: Path) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(read_picture(path)).save(buffer, "PNG")
    return buffer.getvalue()


def _state(review: Review, answers: Answers, reviewer: str) -> dict[str, Any]:
    """How far a reviewer is, and the next pair; None when all are done."""
    file_name(reviewer)  # a name that cannot be kept is told at once
    done = answers.of(reviewer)
    rest = [pair for pair in review.order(reviewer) if pair.id not in done]
    number = sum(pair.id in done for pair in review.pairs)
    return {
        "done": number,
        "total": len(review.pairs),
        "pair": _shown(review, rest[0].id) if rest else None,
    }


def _shown(review: Review, pair: str) -> dict[str, str] | None:
    item = review.pair(pair)
    return {"id": item.id, "prompt": item.prompt} if item else None


def _checked(review: Review, reviewer: str, given: dict[str, Any]) -> Answer:
    """An answer from outside, left and right turned into a and b. Raises UserError."""
    pair = given.get("pair")
    if not isinstance(pair, str) or review.pair(pair) is None:
        raise UserError("the answer is about no pair of this review: reload the page")
    sides = {**review.sides(reviewer, pair), "tie": "tie"}
    votes = {}
    for question in ("follows", "real"):
        if not isinstance(given.get(question), str) or given[question] not in sides:
            raise UserError(f"{question} must be left, right or tie")
        votes[question] = sides[given[question]]
    boxes = given.get("boxes", [])
    if not isinstance(boxes, list) or len(boxes) > MAX_BOXES:
        raise UserError(f"boxes must be a list of at most {MAX_BOXES}")
    return Answer(pair, **votes, boxes=[_box(box, sides) for box in boxes])


def _box(box: Any, sides: dict[str, str]) -> Box:
    try:
        of = {"left": sides["left"], "right": sides["right"]}[box["side"]]
        x, y, w, h = (float(box[key]) for key in "xywh")
    except (KeyError, TypeError, ValueError, OverflowError):  # a whole number may be larger than any float
        raise UserError("a box has a side (left or right) and numbers x, y, w, h") from None
    inside = all(map(math.isfinite, (x, y, w, h))) and min(x, y) >= 0 and w > 0 and h > 0
    if not inside or x + w > 1.0001 or y + h > 1.0001:
        raise UserError("a box lies inside its picture: x, y, w, h are shares of its sides")
    return Box(of, x, y, w, h)
