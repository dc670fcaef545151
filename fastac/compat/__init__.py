"""Doors: fastac's parts in the trainers that people already use, one module a library.

Each is imported by name (`import fastac.compat.sb3`) and needs that library alone; nothing is imported here. How each
library lays out its data is in `fastac.conventions`, which the conformance suite uses, too.
"""
