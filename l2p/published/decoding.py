"""A published PiD behind the interface of this toolkit's own decoders, for `l2p decode`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from l2p.errors import UserError
from l2p.images import Pictures, to_uint8
from l2p.published.pid import PublishedPiD
from l2p.published.pid_text import ENCODER, CaptionReader

if TYPE_CHECKING:
    from l2p.decoders.sources import Source


class PublishedDecoder:
    """``decoder(source, seed) -> uint8 [H s, W s, 3]``, as :class:`l2p.decoders.decode.PidDecoder`; always the whole picture.

    Args:
        num_steps: 1 to 4; 4 if None.
        captions: reads prompts; without it the network gets no caption.
    """

    def __init__(
        self, pid: PublishedPiD, num_steps: int | None = None, captions: CaptionReader | None = None
    ) -> None:
        self.pid, self.num_steps, self.captions = pid, num_steps, captions

    @property
    def scale(self) -> int:
        return self.pid.spec.scale

    def __call__(self, source: Source, seed: int = 0) -> Pictures:
        """Raises UserError for latents that are not this decoder's, or noisier than it was trained on."""
        most = self.pid.spec.max_sigma
        if source.sigma > most:
            raise UserError(
                f"latents of noise level {source.sigma:g}, this decoder was trained from 0 to {most:g}: "
                "let the teacher go further"
            )
        embeds = None
        if self.captions is not None:
            embeds = self.captions([source.prompt or ""])
        pictures = self.pid.decode(source.latents, source.sigma, embeds, seed, self.num_steps or 4)
        return to_uint8(pictures)[0][: source.height * self.scale, : source.width * self.scale]


def caption_reader(name: str | None, prompt: str | None, pid: PublishedPiD) -> CaptionReader | None:
    """What reads captions for a published decoder: the text encoder of this name, or nothing.

    Raises:
        UserError: a prompt that nothing can read, or a text encoder that is missing or of another width.
    """
    if name is None:
        if prompt is not None:
            raise UserError(f"{pid.variant} reads captions with {ENCODER}: give it as --text-encoder")
        return None
    reader = CaptionReader.from_pretrained(name, pid.device, pid.net.y_pos_embedding.dtype)
    width, wanted = reader.model.config.hidden_size, pid.net.sizes.text_width
    if width != wanted:
        raise UserError(
            f"the text encoder {name} has width {width}, {pid.variant} reads {wanted}: take {ENCODER}"
        )
    return reader
