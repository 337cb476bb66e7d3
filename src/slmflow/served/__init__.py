"""The code that travels inside every packaged model.

It imports nothing else of slmflow, so that a packaged model loads in a process that has never
heard of this repository.
"""
