"""What the points of test_slurm_launcher.py do. Jobs import it: keep it light."""

import os
import time
from collections.abc import Mapping
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

PATIENCE = 300  # seconds; a guard against hanging, longer than that of the tests


class Points:
    """The task function. Everything that happens is a line of a file in the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def submitted(self, jobs: Mapping[int, str]) -> None:
        for number, job in jobs.items():
            self._note(number, "submitted", job)

    def __call__(self, config: DictConfig) -> int:
        number = int(HydraConfig.get().job.num)
        self._note(number, "began", os.environ.get("SLURMD_NODENAME", "here"))
        try:
            self._do(str(config.what))
        except BaseException as error:
            self._note(number, "raised", type(error).__name__)
            raise
        self._note(number, "done", "")
        return number

    def _do(self, what: str) -> None:
        if what == "fail":
            raise ValueError("as it was told to")
        if what == "die":
            os.kill(os.getpid(), 9)
        until = time.monotonic() + PATIENCE
        while what == "wait" and not (self.folder / "go").exists():
            assert time.monotonic() < until, "nobody let it go on"
            time.sleep(0.1)

    def _note(self, number: int, what: str, more: str) -> None:
        with (self.folder / f"{number}.txt").open("a") as file:
            file.write(f"{what} {more}\n")

    def lines(self, number: int, what: str) -> list[str]:
        """What followed the word, once for each time."""
        file = self.folder / f"{number}.txt"
        told = file.read_text().splitlines() if file.exists() else []
        return [line.partition(" ")[2] for line in told if line.startswith(what)]
