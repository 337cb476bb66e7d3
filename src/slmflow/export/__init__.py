"""Packaged models for places that MLflow does not reach: a folder, a Docker context, Azure ML."""
