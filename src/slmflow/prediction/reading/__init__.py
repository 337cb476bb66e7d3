"""Rows of all formats, a batch at a time, as Arrow holds them."""
