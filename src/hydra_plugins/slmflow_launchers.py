"""hydra-submitit-launcher's two launchers, brought to their end.

The official ones return at the first job without a result, while others still run, and raise for
it; they submit points that need different resources with the same ones, and a sweep that is
interrupted leaves its jobs in the queue.

Nothing heavy is imported above: Hydra imports every plug-in at every start.
"""

import json
import logging
import re
import signal
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, filter_overrides
from hydra_plugins.hydra_submitit_launcher import submitit_launcher
from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
from omegaconf import OmegaConf

if TYPE_CHECKING:
    from submitit import AutoExecutor

    from slmflow.sweeps.jobs import Jobs

log = logging.getLogger(__name__)


@dataclass
class Batch:
    """Points that are submitted at once, because they ask for the same."""

    settings: dict[str, Any]  # the node hydra.launcher, as these points compose it
    places: list[int] = field(default_factory=list)


class _ToTheEnd:
    """``launch`` returns when every job has ended, with a result for each: of a job that gave
    none, FAILED, with ``JobLost`` as what it raises. Whatever passes through ``launch``, Ctrl-C
    included, cancels the jobs that have not ended, and waits until the scheduler says so.

    A task function that has ``submitted`` is told ``{number: job}`` as soon as there are jobs.
    """

    _EXECUTOR: str
    _OURS: tuple[str, ...] = ("submitit_folder", "max_num_timeout", "_target_")  # not submitit's

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        from slmflow.sweeps.jobs import Jobs
        from slmflow.sweeps.scheduler import SchedulerError

        Path(str(self.config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
        # Numbers of processes come again, and those of jobs on another cluster: an earlier launch
        # must not leave results where this one looks for its own.
        self._folder = f"{datetime.now():%Y%m%d-%H%M%S}-{uuid4().hex[:6]}"
        waiting = self._batches(job_overrides)
        jobs = Jobs()
        results: dict[int, JobReturn] = {}
        try:
            while len(results) < len(job_overrides):
                while waiting and self._has_room(jobs, waiting[0]):
                    batch = waiting.pop(0)
                    try:
                        self._submit(batch, job_overrides, initial_job_idx, jobs)
                    except SchedulerError as error:  # others may ask for what can be had
                        for place in batch.places:
                            results[place] = _returned(error, job_overrides[place])
                for place, outcome in jobs.ended():
                    results[place] = _returned(outcome, job_overrides[place])
        except BaseException:
            jobs.cancel()
            raise
        return [results[place] for place in range(len(job_overrides))]

    def __call__(self, *arguments: Any) -> JobReturn:
        """In the job, where submitit has set its own handlers."""
        import submitit

        from slmflow.sweeps.jobs import TimeIsUp

        signal.signal(signal.SIGTERM, _interrupt)  # scancel; the point ends its run
        usual = signal.getsignal(submitit.JobEnvironment._usr_sig())
        minutes = self.params["timeout_min"]
        told = f"its job's time is up after {minutes} min; for more: hydra.launcher.timeout_min="

        def before_the_end(number: int, frame: Any) -> None:
            try:
                usual(number, frame)  # has it run again, where that is allowed
            except submitit.core.utils.UncompletedJobError:
                raise TimeIsUp(told + "MINUTES") from None

        signal.signal(submitit.JobEnvironment._usr_sig(), before_the_end)
        return super().__call__(*arguments)

    def _batches(self, job_overrides: Sequence[Sequence[str]]) -> list[Batch]:
        batches: dict[str, Batch] = {}
        for place, overrides in enumerate(job_overrides):
            settings = self._settings(overrides)
            key = json.dumps(settings, sort_keys=True, default=str)
            batches.setdefault(key, Batch(settings)).places.append(place)
        return [part for batch in batches.values() for part in self._parts(batch)]

    def _settings(self, overrides: Sequence[str]) -> dict[str, Any]:
        """Resources may come from the point's own config: ``${hardware.threads}``."""
        config = self.config
        if self._differs(overrides):
            config = self.hydra_context.config_loader.load_sweep_config(config, list(overrides))
        return OmegaConf.to_container(config.hydra.launcher, resolve=True, enum_to_str=True)

    def _differs(self, overrides: Sequence[str]) -> bool:
        """Whether a point can ask for something else: to compose each takes a tenth of a second."""
        written = json.dumps(OmegaConf.to_container(self.config.hydra.launcher), default=str)
        from_elsewhere = re.findall(r"\$\{(?!hydra\.|oc\.env:)", written)
        return bool(from_elsewhere) or any(one.lstrip("+").startswith("hydra") for one in overrides)

    def _submit(
        self, batch: Batch, job_overrides: Sequence[Sequence[str]], first: int, jobs: "Jobs"
    ) -> None:
        from slmflow.sweeps.jobs import outside_any_job, refusal, undisturbed
        from slmflow.sweeps.scheduler import SchedulerError

        self.params = batch.settings  # travels with the job
        points = []
        for place in batch.places:
            number = first + place
            log.info("\t#%s : %s", number, " ".join(filter_overrides(job_overrides[place])))
            state = Singleton.get_state()
            points.append(
                (list(job_overrides[place]), "hydra.sweep.dir", number, f"{number}", state)
            )
        told = getattr(self.task_function, "submitted", None)
        with undisturbed():  # else a job could be there that nobody knows of
            with outside_any_job():
                try:
                    made = self._executor(batch.settings).map_array(
                        self, *zip(*points, strict=True)
                    )
                except Exception as error:
                    raise SchedulerError(f"cannot submit: {refusal(error)}") from None
            names = [self._job_name(job.job_id) for job in made]
            jobs.add(dict(zip(batch.places, zip(names, made, strict=True), strict=True)))
        if told is not None:
            told({first + place: name for place, name in zip(batch.places, names, strict=True)})

    def _executor(self, settings: dict[str, Any]) -> "AutoExecutor":
        """As the official launcher makes it."""
        import submitit

        options = {f"{self._EXECUTOR}_max_num_timeout": settings.get("max_num_timeout", 0)}
        folder = Path(settings["submitit_folder"]) / self._folder / "%j"
        executor = submitit.AutoExecutor(cluster=self._EXECUTOR, folder=folder, **options)
        common = {item for item in OmegaConf.structured(BaseQueueConf)}
        own = {name: value for name, value in settings.items() if name not in self._OURS}
        executor.update_parameters(
            **{n if n in common else f"{self._EXECUTOR}_{n}": value for n, value in own.items()}
        )
        return executor

    def _parts(self, batch: Batch) -> list[Batch]:
        """What can be submitted at once."""
        raise NotImplementedError

    def _has_room(self, jobs: "Jobs", batch: Batch) -> bool:
        """Whether it may be submitted now."""
        raise NotImplementedError

    def _job_name(self, job_id: str) -> str:
        raise NotImplementedError


class SlurmLauncher(_ToTheEnd, submitit_launcher.SlurmLauncher):
    """An array a batch; more than one where it is longer than the cluster's arrays may be."""

    def _parts(self, batch: Batch) -> list[Batch]:
        from slmflow.sweeps.scheduler import largest_array

        size = largest_array()
        parts = [batch.places[at : at + size] for at in range(0, len(batch.places), size)]
        at_once = max(1, batch.settings["array_parallelism"] // len(parts))
        settings = {**batch.settings, "array_parallelism": at_once}
        return [Batch(settings, places) for places in parts]

    def _has_room(self, jobs: "Jobs", batch: Batch) -> bool:
        return True  # Slurm's queue is where jobs wait

    def _job_name(self, job_id: str) -> str:
        return f"slurm:{job_id}"


class LocalLauncher(_ToTheEnd, submitit_launcher.LocalLauncher):
    """Processes on this machine, at most ``array_parallelism`` at once."""

    _OURS = (*_ToTheEnd._OURS, "array_parallelism")

    def _parts(self, batch: Batch) -> list[Batch]:
        return [Batch(batch.settings, [place]) for place in batch.places]

    def _has_room(self, jobs: "Jobs", batch: Batch) -> bool:
        return len(jobs) < batch.settings["array_parallelism"]

    def _job_name(self, job_id: str) -> str:
        return f"local:{socket.gethostname()}:{job_id}"


def _returned(outcome: Any, overrides: Sequence[str]) -> JobReturn:
    if isinstance(outcome, JobReturn):
        return outcome
    return JobReturn(overrides=list(overrides), status=JobStatus.FAILED, _return_value=outcome)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
