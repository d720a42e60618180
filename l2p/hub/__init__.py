"""Publishing: a student's folder goes to the Hub and comes back, with a card that tells facts."""

from l2p.hub.fetch import pull, resolve_student

__all__ = ["pull", "resolve_student"]
