"""Weights to MLflow models: get or build them, log them, look at what was logged."""
