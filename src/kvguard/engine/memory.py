"""How much memory rows take, how much there is, and what is done when it runs out."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from kvguard.engine.cache import RaggedCache
from kvguard.errors import KvguardError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


MOST_ROWS = 512  # of a batch: more bring no more tokens/s


_GRAPH = 1 << 26  # bytes of a CUDA graph's nodes and of the workspace of its stream, whatever the rows


def rows_in_memory(model: PreTrainedModel, n_tokens: int) -> int:
    """Return how many rows of ``n_tokens`` fit into half of what memory is free."""
    return int(free_memory(model) / 2 / row_bytes(model, n_tokens))


def out_of_memory(error: RuntimeError) -> bool:
    """Tell whether torch ran out of memory; on a CPU only the error's text says so."""
    return isinstance(error, torch.OutOfMemoryError) or "allocate" in str(error)


def batch_of(rows: int) -> int:
    """Return the rows to decode together where ``rows`` fit: a power of two, and no more than pays."""
    return min(1 << max(0, rows.bit_length() - 1), MOST_ROWS)


def row_bytes(model: PreTrainedModel, n_tokens: Any) -> Any:
    """Return the memory of rows of ``n_tokens``: cache, logits and what the signals make of them."""
    # Logits kept, the model's own, and these in float32; accelerators read the signals in whole tensors.
    copies = 3 if model.device.type == "cpu" else 8
    return n_tokens * entry_bytes(model) + copies * model.config.get_text_config().vocab_size * 4


def entry_bytes(model: PreTrainedModel) -> int:
    """Return the memory of one token's keys and values, in all layers."""
    config = model.config.get_text_config()
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return RaggedCache.bytes_per_row(
        config.num_hidden_layers, 1, config.num_key_value_heads, head_dim, model.dtype
    )


def prefill_bytes(model: PreTrainedModel, n_tokens: Any, implementation: str) -> Any:
    """Return what a layer makes of a prompt on its way, roughly: its MLP, and attention weights if eager."""
    config, itemsize = model.config.get_text_config(), model.dtype.itemsize
    mlp = n_tokens * (3 * config.intermediate_size + 4 * config.hidden_size) * itemsize
    weights = config.num_attention_heads * n_tokens**2 * (2 * itemsize + 4)
    return mlp + weights * (implementation == "eager")


def graph_bytes(model: PreTrainedModel, rows: Any) -> Any:
    """Return what a CUDA graph of the decode step holds for itself, roughly: a layer's MLP, and logits."""
    logits = rows * model.config.get_text_config().vocab_size * model.dtype.itemsize
    return prefill_bytes(model, rows, "sdpa") + logits + _GRAPH


def free_memory(model: PreTrainedModel) -> int:
    """Return the bytes that are free where the model is."""
    if model.device.type == "cuda":
        return int(torch.cuda.mem_get_info(model.device)[0])
    import psutil

    return int(psutil.virtual_memory().available)


T = TypeVar("T")


def release_unused() -> None:
    """Give back to the system what the C library holds in reserve.

    Kept caches are allocated among a prefill's short-lived tensors, which leave holes of a fifth their size.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # a C library other than glibc
            ctypes.CDLL(None).malloc_trim(0)


def within_memory(name: str, device: torch.device, batch_size: int, run: Callable[[int], T]) -> T:
    """Return ``run(batch_size)``; after running out of memory, of half the batch, and so on.

    Raises
    ------
    KvguardError
        There is no memory for one row.
    """
    while True:
        try:
            return run(batch_size)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            if batch_size == 1:
                raise no_memory(
                    f"model {name}: no memory for even one row", "max_new_tokens or dtype"
                ) from None
            batch_size = max(1, batch_size // 2)
        if device.type == "cuda":
            torch.cuda.empty_cache()


@contextmanager
def enough_memory(name: str) -> Iterator[None]:
    """Say in one line that memory ran out, where rows are handed on as they come and none can be made again.

    Raises
    ------
    KvguardError
        Memory ran out.
    """
    try:
        yield
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise no_memory(f"model {name}: memory ran out", "batch_size or max_new_tokens") from None


def no_memory(what: str, smaller: str) -> KvguardError:
    """Return the error of memory that ran out."""
    return KvguardError(f"{what}: use a smaller {smaller}")
