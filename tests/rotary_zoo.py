"""Small random models of every kind of rotary position that caches are moved in, and some without."""

from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

WINDOW = 24
BASE: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,  # sharp attention: a key at the wrong place is seen in the NLL
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {**BASE, "num_key_value_heads": 2}
SLIDING = {**GROUPED, "sliding_window": WINDOW}
HYBRID = {**SLIDING, "num_hidden_layers": 6, "head_dim": 16}

LISTED: dict[str, tuple[str, dict[str, Any]]] = {  # those that the issue lists
    "qwen2": ("Qwen2Config", GROUPED),
    "llama": ("LlamaConfig", GROUPED),
    "gemma2": ("Gemma2Config", {**HYBRID, "query_pre_attn_scalar": 16}),
    "gemma3": ("Gemma3TextConfig", {**HYBRID, "query_pre_attn_scalar": 16}),  # a base per kind of layer
    "mistral": ("MistralConfig", SLIDING),
    "phi": ("PhiConfig", BASE),  # partial rotation, cut by the attention
    "olmo": ("OlmoConfig", GROUPED),
    "gpt_neox": ("GPTNeoXConfig", {**BASE, "rotary_pct": 0.25}),  # partial, cut by the rotation
    "qwen3": ("Qwen3Config", {**GROUPED, "head_dim": 16}),
}
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "phi3": ("Phi3Config", SLIDING),
    "cohere": ("CohereConfig", GROUPED),  # interleaved pairs
    "cohere2": ("Cohere2Config", HYBRID),  # layers without positions
    "glm": ("GlmConfig", {**GROUPED, "head_dim": 16}),  # partial and interleaved
    "smollm3": ("SmolLM3Config", {**GROUPED, "num_hidden_layers": 4}),  # layers without positions
    "stablelm": ("StableLmConfig", GROUPED),  # passes no arguments on to its attention
    "olmo3": ("Olmo3Config", {**SLIDING, "num_hidden_layers": 4}),
    "gpt_oss": ("GptOssConfig", {**HYBRID, "num_local_experts": 4, "num_experts_per_tok": 2}),  # sinks
}
SCALED: dict[str, dict[str, Any]] = {
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 128},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "longrope": {
        "factor": 2.0,
        "original_max_position_embeddings": 256,
        "short_factor": [1.0 + i / 8 for i in range(8)],
        "long_factor": [2.0 + i for i in range(8)],
    },
}
UNMOVABLE: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", {"vocab_size": 300, "n_embd": 64, "n_layer": 2, "n_head": 4}),  # learned positions
    "bloom": ("BloomConfig", {"vocab_size": 300, "hidden_size": 64, "n_layer": 2, "n_head": 4}),  # ALiBi
    "mamba": ("MambaConfig", {"vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 2}),  # no keys
    "opt": (
        "OPTConfig",
        {**BASE, "num_hidden_layers": 2, "ffn_dim": 64, "word_embed_proj_dim": 64},  # learned positions
    ),
    "gptj": (  # rotary, with an attention of its own
        "GPTJConfig",
        {"vocab_size": 300, "n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 8},
    ),
}


def build(name: str, **changes: Any) -> PreTrainedModel:
    """Return the model called ``name``, or ``rope/KIND`` for a Llama with scaled rotations."""
    if name.startswith("rope/"):
        kind = name.removeprefix("rope/")
        own = {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, **SCALED[kind]}}
        cls, shape = "LlamaConfig", {**GROUPED, **own}
    else:
        cls, shape = {**LISTED, **OTHERS, **UNMOVABLE}[name]
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(getattr(transformers, cls)(**{**shape, **changes})).eval()
