"""Loading a model of the params: where it comes from, its dtype, its device."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kvguard.errors import KvguardError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from kvguard.config import ModelSpec


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to generate, with its tokenizer and the digest of its weights."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    fingerprint: str

    @property
    def eos_ids(self) -> list[int]:
        """Token ids that end a generation."""
        eos = self.model.generation_config.eos_token_id
        if eos is None:
            eos = self.tokenizer.eos_token_id
        return [eos] if isinstance(eos, int) else list(eos)

    @property
    def window(self) -> int:
        """Longest sequence, in tokens, that the model was made for."""
        return int(self.model.config.get_text_config().max_position_embeddings)

    def encode(self, prompt: str) -> list[int]:
        """Return the token ids of a user message, through the chat template where there is one."""
        if self.tokenizer.chat_template is None:
            return self.tokenizer.encode(prompt)
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
        )
        return self.tokenizer.encode(text, add_special_tokens=False)

    def decode(self, token_ids: list[int]) -> str:
        """Return the text of generated tokens, without special tokens."""
        return str(self.tokenizer.decode(token_ids, skip_special_tokens=True))


def pick_device(device: str) -> torch.device:
    """Resolve ``auto`` to CUDA before MPS before CPU.

    Raises
    ------
    KvguardError
        If the device asked for is not there.
    """
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        device = next(name for name, available in there.items() if available)
    if not there.get(device.partition(":")[0], False):
        raise KvguardError(f"device: '{device}' is not available here; use --device auto, or cpu")
    return torch.device(device)


def load_model(name: str, spec: ModelSpec, device: str = "auto") -> LoadedModel:
    """Load a model and its tokenizer.

    Parameters
    ----------
    name : str
        Its name in the params.
    spec : ModelSpec
        ``source`` is ``embedded:<name>``, ``path:<dir>`` or a hub id.
    device : str
        ``auto``, ``cuda``, ``mps`` or ``cpu``.

    Raises
    ------
    KvguardError
        If the source cannot be found or loaded.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    if logging.is_progress_bar_enabled():
        logging.disable_progress_bar()  # ours count traces; one per weight tensor would drown them
    where = pick_device(device)
    source = _resolve(name, spec.source)
    tokenizer = load_tokenizer(name, spec)
    with _loading(name, spec):
        model = AutoModelForCausalLM.from_pretrained(
            source, dtype=getattr(torch, spec.dtype), attn_implementation="sdpa"
        )
    model.to(where).eval()  # type: ignore[arg-type]
    return LoadedModel(name, model, tokenizer, _fingerprint(source, model))


def load_tokenizer(name: str, spec: ModelSpec) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer alone; arguments and errors as in :func:`load_model`."""
    from transformers import AutoTokenizer

    with _loading(name, spec):
        return AutoTokenizer.from_pretrained(_resolve(name, spec.source))


def vocabulary_size(name: str, spec: ModelSpec) -> int:
    """Return the number of logits of a model, from its configuration alone."""
    from transformers import AutoConfig

    with _loading(name, spec):
        return int(AutoConfig.from_pretrained(_resolve(name, spec.source)).get_text_config().vocab_size)


@contextmanager
def _loading(name: str, spec: ModelSpec) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        reason = re.sub(r"\s+", " ", str(error))[:200]
        raise KvguardError(
            f"model {name}: '{spec.source}' cannot be loaded ({reason}); "
            "check the name and the network, set HF_TOKEN for a gated model, or use path:/some/dir"
        ) from None


def _resolve(name: str, source: str) -> str:
    kind, _, rest = source.partition(":")
    if kind == "embedded":
        from kvguard.models.reference import WEIGHTS

        path = WEIGHTS / rest
    elif kind == "path":
        path = Path(rest)
    else:
        return source
    if not (path / "config.json").is_file():
        raise KvguardError(
            f"model {name}: no model lies at {path} (config.json is missing); mend models.{name}.source"
        )
    return str(path)


def _fingerprint(source: str, model: PreTrainedModel) -> str:
    """Digest the files of a local model; a hub model is known by its commit."""
    folder = Path(source)
    if not folder.is_dir():
        return f"{source}@{getattr(model.config, '_commit_hash', None)}"
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix in {".json", ".safetensors", ".bin", ".jinja", ".model"}:
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()
