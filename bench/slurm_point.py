"""The points of bench/slurm.py: jobs import it."""

from pathlib import Path

from omegaconf import DictConfig

PROMPT = 512  # tokens


class Read:
    """The task function: so many prompts read by the bench's model, on one core."""

    def __init__(self, folder: Path, prompts: int) -> None:
        self._folder = folder
        self._prompts = prompts

    def __call__(self, config: DictConfig) -> int:
        from slmflow.served.onnx_runtime import OnnxRuntime
        from slmflow.served.search import SearchOptions

        runtime = OnnxRuntime.load(self._folder, threads=1)
        prompt = [int(config.token)] * PROMPT
        return sum(
            1 for _ in range(self._prompts) for _ in runtime.steps([prompt], SearchOptions(), 1)
        )
