"""Measurements of this project's promises: python -m bench.NAME, see README.md."""

import entrypoints  # noqa: F401  it puts src/ on the path
