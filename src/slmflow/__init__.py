"""slmflow packages small language models as MLflow models and shows which one to use."""

__version__ = "0.1.0"
