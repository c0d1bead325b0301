"""Small random models of the architectures that tests run on: real code paths, no training needed."""

from typing import Any

import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

SHAPE = {
    "vocab_size": 258,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 16,
    "max_position_embeddings": 1024,
    "initializer_range": 0.25,  # wide logits: near ties are rare, and some rows end by themselves
    "eos_token_id": 1,
    "pad_token_id": 0,
}
WINDOW = 24
SLIDING = {
    "hidden_size": 96,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_hidden_layers": 4,
    "sliding_window": WINDOW,
    "tie_word_embeddings": False,
}
ARCHITECTURES = {
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "gemma3": (Gemma3TextConfig, Gemma3ForCausalLM, SLIDING),  # text only, with sliding windows
}


def build(architecture: str, **changes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    config, cls, own = ARCHITECTURES[architecture]
    return cls(config(**{**SHAPE, **own, **changes})).eval()
