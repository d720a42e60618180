"""From latents to pixels: the teacher's own decoder, and pixel diffusion decoders that are students of this house."""
