"""A packaged model, loaded in a process of its own, asked questions and timed."""
