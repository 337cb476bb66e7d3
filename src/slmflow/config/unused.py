"""What of a config means nothing to an entry point, and is not logged as its parameter."""

EVALUATION = ("data", "ask", "score", "speed", "parity", "gate", "promote", "trace", "lm_eval")
SWEEP = ("sweep",)  # which is on the sweep's own run
UNUSED = {
    "main": SWEEP,
    "evaluate": SWEEP,
    "transformers_pipeline": (
        *SWEEP,
        *EVALUATION,
        *("model.onnx", "hardware.provider", "hardware.precision", "hardware.package"),
        *("hardware.block_size", "hardware.accuracy_level", "hardware.symmetric"),
    ),
    "custom_onnx": (*SWEEP, *EVALUATION, "hardware.device", "hardware.dtype"),
    "serve": (
        *("model.source", "model.revision", "model.trust_remote_code", "model.onnx"),
        *("hardware.device", "hardware.dtype"),
        *("hardware.provider", "hardware.precision", "hardware.package", "hardware.block_size"),
        *("hardware.accuracy_level", "hardware.symmetric"),
    ),
}
UNUSED["predict"] = UNUSED["serve"]
UNUSED["export"] = (*UNUSED["serve"], "hardware.threads")
"""Keys of the config that say nothing about what an entry point makes."""
