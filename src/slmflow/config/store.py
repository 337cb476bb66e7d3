"""What Hydra must know before it composes: the schemas, and the hardware that ``auto`` means."""

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from slmflow.config.doctor import DoctorConfig
from slmflow.config.export import ExportConfig
from slmflow.config.lock import LockConfig
from slmflow.config.rerun import RerunConfig
from slmflow.config.schema import (
    CustomOnnxConfig,
    EvaluateConfig,
    MainConfig,
    MaterialiseConfig,
    PredictConfig,
    ServeConfig,
    TransformersPipelineConfig,
)
from slmflow.machine import detect_target

SCHEMAS = {
    "transformers_pipeline": TransformersPipelineConfig,
    "custom_onnx": CustomOnnxConfig,
    "evaluate": EvaluateConfig,
    "main": MainConfig,
    "serve": ServeConfig,
    "predict": PredictConfig,
    "doctor": DoctorConfig,
    "export": ExportConfig,
    "lock": LockConfig,
    "materialise": MaterialiseConfig,
    "rerun": RerunConfig,
}


def register() -> None:
    """Idempotent. Schemas live in a group of their own, so that no user group lists them."""
    for name, schema in SCHEMAS.items():
        ConfigStore.instance().store(group="schema", name=name, node=schema)
    if not OmegaConf.has_resolver("detect_target"):
        OmegaConf.register_new_resolver("detect_target", detect_target)
