"""Small random models of the two reference architectures: real code paths, no training needed."""

import torch
from transformers import (
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


def build(architecture: str, **changes: int) -> PreTrainedModel:
    torch.manual_seed(0)
    config, cls = {"qwen2": (Qwen2Config, Qwen2ForCausalLM), "llama": (LlamaConfig, LlamaForCausalLM)}[
        architecture
    ]
    return cls(config(**{**SHAPE, **changes})).eval()
