"""Evaluation sets: rows read from where they lie, checked, sampled, and recorded."""
