"""The shapes of the reference models and the attention they are trained with."""

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from kvguard.errors import KvguardError

WINDOW = 2048
ARCHITECTURES = ("qwen2", "llama")
_TRAINING_ATTENTION = "kvguard_causal"


def build_model(architecture: str, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """Return the freshly initialised reference model of ``architecture``, in float32."""
    common = {
        "vocab_size": len(tokenizer),
        "hidden_size": 192,
        "num_attention_heads": 6,
        "head_dim": 32,
        "max_position_embeddings": WINDOW,
        "tie_word_embeddings": True,
        "rms_norm_eps": 1e-6,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model: PreTrainedModel
    if architecture == "qwen2":
        model = Qwen2ForCausalLM(
            Qwen2Config(num_hidden_layers=6, num_key_value_heads=3, intermediate_size=512, **common)
        )
    elif architecture == "llama":
        model = LlamaForCausalLM(
            LlamaConfig(num_hidden_layers=6, num_key_value_heads=2, intermediate_size=512, **common)
        )
    else:
        raise KvguardError(f"unknown architecture {architecture!r}: choose one of {', '.join(ARCHITECTURES)}")
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return model


def use_training_attention(model: PreTrainedModel) -> None:
    """Make ``model`` attend causally without a mask: on a CPU much faster to train than its default."""
    ALL_ATTENTION_FUNCTIONS.register(_TRAINING_ATTENTION, _causal_attention)
    model.config._attn_implementation = _TRAINING_ATTENTION


def _causal_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Attend within unpadded rows."""
    groups = query.shape[1] // key.shape[1]  # [B, H, T, D] and [B, H / groups, T, D]
    keys, values = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    attended = scaled_dot_product_attention(query, keys, values, is_causal=True, scale=scaling)
    return attended.transpose(1, 2).contiguous(), None
