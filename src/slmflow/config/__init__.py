"""Hydra configs to checked dataclasses. Imports neither torch nor mlflow."""
