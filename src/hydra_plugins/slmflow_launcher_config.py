"""What ``hydra/launcher=submitit_slurm``, ``submitit_local`` and ``joblib`` mean in this project.

They stand in for the official options of the same names. ``conf/hydra/launcher/`` has presets on
top of them.
"""

from dataclasses import dataclass
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra_plugins.hydra_joblib_launcher.config import JobLibLauncherConf
from hydra_plugins.hydra_submitit_launcher.config import LocalQueueConf, SlurmQueueConf
from omegaconf import OmegaConf

FOLDER = "${oc.env:SLMFLOW_CACHE,'~/.cache/slmflow'}/sweeps"


@dataclass
class SlurmConf(SlurmQueueConf):
    """Each point a task of a Slurm array, with the cluster's defaults where nothing is said."""

    _target_: str = "hydra_plugins.slmflow_launchers.SlurmLauncher"
    submitit_folder: str = FOLDER  # on a disk that all nodes share; each launch has one of its own


@dataclass
class LocalConf(LocalQueueConf):
    """Each point in a process of its own on this machine, as Slurm would start it."""

    _target_: str = "hydra_plugins.slmflow_launchers.LocalLauncher"
    submitit_folder: str = FOLDER
    timeout_min: int = 24 * 60
    array_parallelism: int = 2  # points that run at once; a model alone uses all cores


@dataclass
class JoblibConf(JobLibLauncherConf):
    """Points in processes that are kept from one to the next."""

    n_jobs: int = 2  # points that run at once; Hydra's own default is one a core
    batch_size: str = "1"  # a worker that dies takes no other points with it
    pre_dispatch: str = "n_jobs"


class OurLaunchers(SearchPathPlugin):  # type: ignore[misc]
    """Of use for its moment alone: after Hydra has read all plug-ins, in whatever order, and
    before it composes."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for name, config in (
            ("submitit_slurm", SlurmConf),
            ("submitit_local", LocalConf),
            ("joblib", JoblibConf),
        ):
            ConfigStore.instance().store(
                group="hydra/launcher", name=name, node=config, provider="slmflow"
            )
        # ${on_gpu:${hardware.target},1,null}: with a GPU the second, else the third
        OmegaConf.register_new_resolver("on_gpu", _on_gpu, replace=True)
        # ${cores:${hardware.threads},4}: its number of threads, or 4 where that is auto
        OmegaConf.register_new_resolver("cores", _cores, replace=True)


def _on_gpu(target: Any, then: Any, otherwise: Any) -> Any:
    return then if str(target) == "cuda" else otherwise


def _cores(threads: Any, automatic: Any) -> Any:
    return threads if isinstance(threads, int) else automatic
