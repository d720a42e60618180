"""Pixel students: a core that came from a teacher, a head that paints."""
