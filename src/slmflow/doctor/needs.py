"""How much memory and disk a model needs: figures from shapes, nothing asked of the machine."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from slmflow.config.schema import Dtype, Precision, Provider

DTYPE_BYTES = {Dtype.float32: 4, Dtype.bfloat16: 2, Dtype.float16: 2}
CONFIG_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}
PRECISION_BYTES = {Precision.fp32: 4.0, Precision.fp16: 2.0, Precision.bf16: 2.0}
BUILDER_FACTOR = 6  # memory of the ONNX model builder over the checkpoint's size, at most
PACKED_FACTOR = (
    1.35  # resident over file size of int4 and int8 on CPU: 3.5 GB of 2.6 GB, Phi-3-mini
)
PROCESS_BYTES = {"transformers": 500_000_000, "onnx": 250_000_000}  # MLflow and the runtime loaded


@dataclass(frozen=True)
class Shape:
    """Of a decoder-only transformer: what its memory follows from."""

    layers: int
    kv_heads: int
    head_dim: int
    context: int  # tokens
    hidden: int
    vocabulary: int
    stored_bytes: int  # of one parameter in the checkpoint


def read_shape(config: Mapping[str, Any]) -> Shape | None:
    """From config.json of transformers, or genai_config.json of ONNX; None where it tells none."""
    try:
        if "decoder" in config.get("model", ()):
            return _of_genai(config["model"])
        text = config.get("text_config", config)
        heads, hidden = int(text["num_attention_heads"]), int(text["hidden_size"])
        dtype = text.get("dtype") or text.get("torch_dtype") or config.get("torch_dtype")
        return Shape(
            layers=int(text["num_hidden_layers"]),
            kv_heads=int(text.get("num_key_value_heads") or heads),
            head_dim=int(text.get("head_dim") or hidden // heads),
            context=int(text["max_position_embeddings"]),
            hidden=hidden,
            vocabulary=int(text["vocab_size"]),
            stored_bytes=CONFIG_DTYPE_BYTES.get(str(dtype), 4),
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError, AttributeError):
        return None


def _of_genai(model: Mapping[str, Any]) -> Shape:
    decoder = model["decoder"]
    return Shape(
        layers=int(decoder["num_hidden_layers"]),
        kv_heads=int(decoder["num_key_value_heads"]),
        head_dim=int(decoder["head_size"]),
        context=int(model["context_length"]),
        hidden=int(decoder["hidden_size"]),
        vocabulary=int(model["vocab_size"]),
        stored_bytes=4,
    )


def kv_cache_bytes(shape: Shape, length: int, value_bytes: int) -> int:
    """2 x layers x KV heads x head dimension x length x bytes of a value.

    A key and a value of every token in every layer, for one answer (Pope et al. 2022, "Efficiently
    Scaling Transformer Inference", section 2.1; with fewer KV heads, Ainslie et al. 2023, "GQA").
    transformers grows it token by token; onnxruntime-genai reserves prompt and answer at once.
    """
    return 2 * shape.layers * shape.kv_heads * shape.head_dim * length * value_bytes


def kv_value_bytes(precision: Precision, provider: Provider) -> int:
    """Of the type in which an ONNX model takes and gives its cache.

    The builder's ``default_io_dtype`` (onnxruntime_genai/models/quantization/quant_config.py).
    """
    on_cpu = provider is Provider.cpu and precision in (Precision.int4, Precision.int8)
    return 4 if precision is Precision.fp32 or on_cpu else 2


def transformers_bytes(stored: int, shape: Shape, dtype: Dtype) -> int:
    """Weights in memory: every parameter of the files in the dtype that it is loaded in."""
    return stored // shape.stored_bytes * DTYPE_BYTES[dtype]


def built_onnx_bytes(
    stored: int, shape: Shape, precision: Precision, provider: Provider, block_size: int
) -> int:
    """About the size of the files that the builder will write.

    int4 and int8: every matrix in 4 or 8 bits, and a scale of the model's own type for each block;
    the embedding stays in that type.
    """
    parameters = stored // shape.stored_bytes
    if precision in PRECISION_BYTES:
        return int(parameters * PRECISION_BYTES[precision])
    own = kv_value_bytes(precision, provider)
    embedding = min(shape.vocabulary * shape.hidden, parameters)
    bits = 4 if precision is Precision.int4 else 8
    return int((parameters - embedding) * (bits / 8 + own / block_size) + embedding * own)
