"""The points of bench/slurm.py: jobs import it."""

from pathlib import Path

from omegaconf import DictConfig


class Decode:
    """The task function: so many tokens of the bench's model, on one core."""

    def __init__(self, folder: Path, tokens: int) -> None:
        self._folder = folder
        self._tokens = tokens

    def __call__(self, config: DictConfig) -> int:
        from slmflow.served.onnx_runtime import OnnxRuntime
        from slmflow.served.search import SearchOptions

        runtime = OnnxRuntime.load(self._folder, threads=1)
        prompt = [int(config.token)] * 16
        return sum(1 for _ in runtime.steps([prompt], SearchOptions(), self._tokens))
