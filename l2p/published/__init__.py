"""Weights that others published, in this toolkit's folders: L2P's students and PiD's decoder.

A variant says every name and shape of its file; a file is that variant to the letter or is refused.
"""
