"""Paths from a prompt to 8 bits, timed side by side; and what a preset costs, counted without running it."""
