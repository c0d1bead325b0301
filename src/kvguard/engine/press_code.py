"""The one place where a press's own code runs: whatever it raises becomes one line.

And the one rule for layers with a sliding window, whichever press and model class: they are not compressed.
kvpress itself knows it for the class ``Gemma3ForConditionalGeneration`` only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from kvguard.engine.layers import sliding_windows
from kvguard.engine.presses import check_press, presses_in
from kvguard.errors import KvguardError, foreign

if TYPE_CHECKING:
    from kvpress import BasePress, ScorerPress

_FIX = "use another press, or other arguments of it"


def introduce(model: PreTrainedModel, press: BasePress, who: str) -> None:
    """Let a press prepare itself for a model: some load what was trained for it.

    A press that fails is left as it was, so that it fails in the same way the next time.

    Parameters
    ----------
    who : str
        The press as a message names it.

    Raises
    ------
    KvguardError
        If it cannot serve the model.
    """
    check_press(press)
    _check_windows(model, press, who)
    before = [(inner, dict(vars(inner))) for inner in presses_in(press)]
    try:
        with foreign(f"{who}: the press cannot serve this model", _FIX):
            press.post_init_from_model(model)
    except BaseException:
        for inner, state in before:
            vars(inner).clear()
            vars(inner).update(state)
        raise


def scores_of(
    press: ScorerPress,
    who: str,
    module: nn.Module,
    hidden: Tensor,
    keys: Tensor,
    values: Tensor,
    attentions: Tensor | None,
    kwargs: dict[str, Any],
) -> Tensor:
    """Let a press score entries: the higher, the better. keys and values [B, H, T, D] -> [B, H, T].

    Parameters
    ----------
    who : str
        The press as a message names it, and of whom it is asked.

    Raises
    ------
    KvguardError
        If it fails, or its scores are not one for each entry.
    """
    with foreign(f"{who}: the press rejects it", f"{_FIX}, or a longer prompt"):
        scores: Tensor = press.score(module, hidden, keys, values, attentions, kwargs)
        if scores.shape != keys.shape[:3]:
            raise ValueError(f"{list(keys.shape[:3])} entries got {list(scores.shape)} scores")
    return scores


def hooked(
    press: BasePress,
    who: str,
    module: nn.Module,
    kwargs: dict[str, Any],
    output: tuple[Tensor, Tensor | None],
) -> None:
    """Let a press compress one layer of the cache in ``kwargs``, as kvpress's own hook does after that layer.

    Raises
    ------
    KvguardError
        If it fails.
    """
    with foreign(f"{who}: the press rejects it", f"{_FIX}, or a longer prompt"):
        press.forward_hook(module, [], kwargs, list(output))


@contextmanager
def compressing(model: PreTrainedModel, press: BasePress, who: str) -> Iterator[None]:
    """Enter kvpress's own context, in which a prompt's pass is compressed, in all layers with full attention.

    Head-wise presses leave masks on the modules: see :func:`~kvguard.engine.layers.clear_head_masks`.

    Raises
    ------
    KvguardError
        If the press fails, on entering, within, or on leaving.
    """
    sliding = {index for index, window in enumerate(sliding_windows(model)) if window is not None}
    hook = press.forward_hook

    def unless_sliding(module: nn.Module, inputs: Any, kwargs: dict[str, Any], output: Any) -> Any:
        return output if module.layer_idx in sliding else hook(module, inputs, kwargs, output)

    with (
        foreign(f"{who}: the press rejects this prompt", f"{_FIX}, or another prompt"),
        ExitStack() as context,
    ):
        if sliding:  # kvpress registers what the press calls its hook
            press.forward_hook = unless_sliding
            context.callback(vars(press).pop, "forward_hook")
        context.enter_context(press(model))
        yield


def _check_windows(model: PreTrainedModel, press: BasePress, who: str) -> None:
    """Reject a press that would compress sliding-window layers, or a model of nothing else."""
    from kvpress import BasePress

    windows = sliding_windows(model)
    if not any(windows):
        return
    if all(windows):
        raise KvguardError(
            f"{who}: there is nothing to compress: no press compresses sliding-window layers, which evict by "
            "themselves, and this model has no others; use no press, or a model with full attention"
        )
    if type(press).__call__ is not BasePress.__call__:
        raise KvguardError(
            f"{who}: the press cannot serve this model: it compresses all layers at once, and some are "
            "sliding-window layers, which evict by themselves; use a press that goes layer by layer"
        )
