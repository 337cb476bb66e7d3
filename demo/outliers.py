"""Gives the weights channels of uneven strength, as the weights of large models have."""

from __future__ import annotations

import torch
from transformers import Phi3ForCausalLM

SPREAD = 0.75  # standard deviation of the logarithm of a channel's strength; 0 changes nothing


def spread_channels(model: Phi3ForCausalLM, seed: int) -> None:
    """Divide the gain of each norm and multiply the weights that read it: the same function.

    A model this small has no outlier channels by itself, so that int4 rounding, which suffers
    from them, would cost next to nothing, and comparing precisions would show nothing.
    """
    generator = torch.Generator().manual_seed(seed)
    inner = model.model
    readers = [(inner.norm, model.lm_head)]
    for layer in inner.layers:
        readers.append((layer.input_layernorm, layer.self_attn.qkv_proj))
        readers.append((layer.post_attention_layernorm, layer.mlp.gate_up_proj))
    with torch.no_grad():
        for norm, linear in readers:
            strength = torch.exp(SPREAD * torch.randn(norm.weight.shape, generator=generator))
            norm.weight.div_(strength)
            linear.weight.mul_(strength)
