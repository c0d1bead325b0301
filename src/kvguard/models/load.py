"""Loading a model of the params: where it comes from, its dtype, its device."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvguard.errors import KvguardError
from kvguard.models.availability import check_available, loading, model_class, pick_device, resolve
from kvguard.models.decoding import text_of
from kvguard.models.encoding import Encoder
from kvguard.models.end_tokens import end_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from kvguard.models.spec import ModelSpec

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to generate, with its tokenizer and the digest of its weights."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    fingerprint: str

    @property
    def eos_ids(self) -> list[int]:
        """Token ids that end a generation, see :mod:`kvguard.models.end_tokens`."""
        return list(end_tokens(self.name, self.model, self.tokenizer).ids)

    def warn_of_doubts(self) -> None:
        """Say, before a run, what about its prompts and the end of its texts may be wrong."""
        for doubt in (*end_tokens(self.name, self.model, self.tokenizer).doubts, *self._encoder.doubts):
            _log.warning(doubt)

    @property
    def window(self) -> int:
        """Longest sequence, in tokens, that the model was made for."""
        return int(self.model.config.get_text_config().max_position_embeddings)

    @property
    def has_chat(self) -> bool:
        """Whether the model is asked through a chat template; one without is asked in plain text."""
        return self.tokenizer.chat_template is not None

    def encode(self, prompt: str | Mapping[str, Any]) -> list[int]:
        """Return the token ids of a prompt, through the chat template where there is one.

        Control tokens that stand in a text are encoded as text, see :mod:`kvguard.models.encoding`.

        Parameters
        ----------
        prompt
            A user message; or its forms as the prompts table has them: ``messages``, each with role and
            content, for a model with a chat template, ``text`` for one without.

        Raises
        ------
        KvguardError
            It cannot be encoded, or the chat template leaves a message out.
        """
        return self._encoder.encode(prompt)

    @cached_property
    def _encoder(self) -> Encoder:
        size = int(self.model.config.get_text_config().vocab_size)
        return Encoder(self.name, self.tokenizer, tuple(self.eos_ids), size)

    def decode(self, token_ids: list[int]) -> str:
        """Return the text of generated tokens, without special tokens."""
        return text_of(self.tokenizer, token_ids)


def load_model(name: str, spec: ModelSpec, device: str = "auto") -> LoadedModel:
    """Load a decoder and its tokenizer.

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
        If the source cannot be found or loaded, or is an encoder-decoder.
    """
    return _loaded(name, spec, device, encoder_decoder=False)


def load_encoder_decoder(name: str, spec: ModelSpec, device: str = "auto") -> LoadedModel:
    """Load an encoder-decoder and its tokenizer; arguments and errors as in :func:`load_model`."""
    return _loaded(name, spec, device, encoder_decoder=True)


def _loaded(name: str, spec: ModelSpec, device: str, *, encoder_decoder: bool) -> LoadedModel:
    from transformers import AutoConfig
    from transformers.utils import logging

    if logging.is_progress_bar_enabled():
        logging.disable_progress_bar()  # ours count traces; one per weight tensor would drown them
    check_available(name, spec, device)
    where = pick_device(device)
    source = resolve(name, spec)
    tokenizer = load_tokenizer(name, spec)
    with loading(name, spec, where):
        config = AutoConfig.from_pretrained(source, revision=spec.revision)
    if config.is_encoder_decoder != encoder_decoder:
        kinds = ["a decoder", "an encoder-decoder"]
        raise KvguardError(
            f"model {name}: it is {kinds[config.is_encoder_decoder]}, and {kinds[encoder_decoder]} is needed "
            "here: name another model"
        )
    with loading(name, spec, where):
        model = model_class(config).from_pretrained(
            source, revision=spec.revision, device_map={"": where}, **_how(spec, where.type)
        )
    model.usual_attention = model.config._attn_implementation
    model.cuda_graphs = spec.cuda_graphs
    return LoadedModel(name, model.eval(), tokenizer, _fingerprint(source, spec, model))


def load_tokenizer(name: str, spec: ModelSpec) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer alone; arguments and errors as in :func:`load_model`."""
    from transformers import AutoTokenizer

    with loading(name, spec):
        return AutoTokenizer.from_pretrained(resolve(name, spec), revision=spec.revision)


def vocabulary_size(name: str, spec: ModelSpec) -> int:
    """Return the number of logits of a model, from its configuration alone."""
    from transformers import AutoConfig

    with loading(name, spec):
        config = AutoConfig.from_pretrained(resolve(name, spec), revision=spec.revision)
    return int(config.get_text_config().vocab_size)


def _how(spec: ModelSpec, device_type: str) -> dict[str, Any]:
    """Return the arguments of ``from_pretrained`` that say in which form the weights are held."""
    import torch
    from transformers import BitsAndBytesConfig

    dtype = getattr(torch, spec.dtype_on(device_type))
    how: dict[str, Any] = {
        "dtype": dtype,
        "attn_implementation": "sdpa" if spec.attention == "auto" else spec.attention,
    }
    if spec.quantisation == "nf4":
        how["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    return how


def _fingerprint(source: str, spec: ModelSpec, model: PreTrainedModel) -> str:
    """Digest the files of a local model, or name a hub model's commit; and say how it is held."""
    folder = Path(source)
    if folder.is_dir():
        digest = hashlib.sha256()
        for path in sorted(folder.iterdir()):
            if path.suffix in {".json", ".safetensors", ".bin", ".jinja", ".model", ".txt"}:
                with path.open("rb") as file:
                    content = hashlib.file_digest(file, "sha256").digest()
                digest.update(path.name.encode() + b"\0" + content)
        weights = digest.hexdigest()
    else:
        weights = f"{source}@{getattr(model.config, '_commit_hash', None)}"
    unusual = [spec.quantisation] * (spec.quantisation != "none") + ["eager"] * (spec.attention == "eager")
    unusual += ["no graphs"] * (not spec.cuda_graphs)
    return "/".join([weights, *unusual])
