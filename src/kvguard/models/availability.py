"""Whether a model can be had here: asked before anything is written, answered in seconds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvguard.errors import KvguardError

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

    from kvguard.models.spec import ModelSpec

_GIB = 2**30
# Bytes of one weight in NF4: 4 bits, one byte per block of 64, one float per 256 of those.
_NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)


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
        raise KvguardError(f"device: '{device}' is not available here; use auto or cpu")
    return torch.device(device)


def check_available(name: str, spec: ModelSpec, device: str = "auto") -> None:
    """Reject a model that cannot be loaded: not there, gated, unreachable, or too large for the memory.

    Raises
    ------
    KvguardError
        Naming the model, the cause and the fix.
    """
    where = pick_device(device)
    if spec.quantisation == "nf4" and find_spec("bitsandbytes") is None:
        raise KvguardError(
            f"model {name}: quantisation nf4 needs bitsandbytes: pip install 'kvguard[nf4]', "
            f"or set models.{name}.quantisation to none"
        )
    source = resolve(name, spec)
    if not Path(source).is_dir():
        _check_hub(name, spec)
    with loading(name, spec):
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(source, revision=spec.revision)
        needed = weight_bytes(config, spec.dtype_on(where.type), spec.quantisation)
    free = free_bytes(where)
    if needed > free:
        raise KvguardError(
            _too_large(name, spec, where, f"{needed / _GIB:.1f} GiB", f"{free / _GIB:.1f} GiB")
        )


def resolve(name: str, spec: ModelSpec) -> str:
    """Return the folder of a local model, or the hub id."""
    kind, _, rest = spec.source.partition(":")
    if kind == "embedded":
        from kvguard.models.reference import embedded

        path = embedded(rest)
    elif kind == "path":
        path = Path(rest)
    else:
        return spec.source
    if not (path / "config.json").is_file():
        raise KvguardError(
            f"model {name}: no model lies at {path} (config.json is missing); fix {_key(name, spec)}"
        )
    return str(path)


def weight_bytes(config: PretrainedConfig, dtype: str, quantisation: str) -> int:
    """Return the memory that a model's weights take, from its configuration alone.

    NF4 holds every linear layer but the last in four bits; embeddings and the rest keep ``dtype``.
    """
    import torch

    with torch.device("meta"):
        model = model_class(config).from_config(config)
    size = getattr(torch, dtype).itemsize
    total = sum(parameter.numel() for parameter in model.parameters())
    if quantisation == "none":
        return int(total * size)
    head = model.get_output_embeddings()
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    packed = sum(module.weight.numel() for module in linear)
    return int((total - packed) * size + packed * _NF4_BYTES)


def model_class(config: PretrainedConfig) -> type[Any]:
    """Return the class of transformers that loads a model with a head for texts."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def free_bytes(device: torch.device) -> int:
    """Return the free memory of a device; for a CPU, and where a device shares its memory, the host's."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    return int(psutil.virtual_memory().available)


@contextmanager
def loading(name: str, spec: ModelSpec, device: torch.device | None = None) -> Iterator[None]:
    """Turn what transformers raises while it loads a model into one line."""
    import torch

    try:
        yield
    except KvguardError:
        raise
    except (torch.OutOfMemoryError, MemoryError):
        raise KvguardError(_too_large(name, spec, device, "more memory", "too little")) from None
    except Exception as error:  # what a damaged file raises is of any class
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise KvguardError(
            f"model {name}: '{spec.source}' cannot be loaded ({reason}); "
            "check its files and the network, or use another copy of it, as path:/some/dir"
        ) from None


def _check_hub(name: str, spec: ModelSpec) -> None:
    """Ask the hub once, unless the model is cached: transformers would try for half a minute."""
    import httpx
    from huggingface_hub import HfApi, errors, try_to_load_from_cache

    repository = spec.source
    if isinstance(try_to_load_from_cache(repository, "config.json", revision=spec.revision), str):
        return
    try:
        api = HfApi()
        api.auth_check(repository)
        api.model_info(repository, revision=spec.revision, timeout=10)
    except errors.GatedRepoError:
        problem = (
            f"{repository} is gated: accept its terms at https://huggingface.co/{repository} and set HF_TOKEN"
        )
    except errors.RevisionNotFoundError:
        problem = f"{repository} has no revision {spec.revision!r}: fix models.{name}.revision"
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        problem = (
            f"the hub has no {repository}, or it is private: fix {_key(name, spec)}, set HF_TOKEN, "
            "or use path:/some/dir"
        )
    except (httpx.HTTPError, errors.HfHubHTTPError, errors.OfflineModeIsEnabled) as error:
        problem = (
            f"{repository} is not cached and the hub cannot be reached ({type(error).__name__}): connect, "
            f"or set {_key(name, spec)} to a local copy, path:/some/dir"
        )
    else:
        return
    raise KvguardError(f"model {name}: {problem}")


def _too_large(name: str, spec: ModelSpec, device: torch.device | None, needed: str, free: str) -> str:
    fixes = ["free some memory, or use a larger device"]
    dtype = spec.dtype_on(device.type if device is not None else "cpu")
    if dtype == "float32":
        fixes.insert(0, f"set {_key(name, spec, 'dtype')}: bfloat16")
    elif spec.quantisation == "none" and name != spec.source:
        fixes.insert(0, f"set models.{name}.quantisation: nf4")
    place = f" on {device.type}" if device is not None else ""
    return (
        f"model {name}: its weights need {needed} as {dtype}"
        f"{' in NF4' if spec.quantisation == 'nf4' else ''}, {free} is free{place}; "
        f"{', '.join(fixes)}"
    )


def _key(name: str, spec: ModelSpec, key: str = "source") -> str:
    """Return where the user says something of a model: one that is in no settings is named by its source."""
    return f"models.{name}.{key}" if name != spec.source else "--model" if key == "source" else f"--{key}"
