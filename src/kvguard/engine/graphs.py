"""The decode step recorded once and repeated, so that an accelerator does not wait for Python.

A CUDA graph repeats the same kernels on the same memory. So all that changes from step to step lies in
tensors that stay where they are: the shelves of the cache, the logits, and buffers of tokens, positions and
lengths. Places and masks are made from these on the device. What cannot change, which rows attend
together to how many entries, is a :class:`~kvguard.engine.shelves.Layout` with room for some tokens; when a
row outgrows it, or a shelf is allocated anew, the next one is recorded. So there is one graph at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache as cached
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from kvguard.engine.cache import RaggedCache
from kvguard.engine.shelves import Layout
from kvguard.errors import KvguardError

_ROOM = 64  # tokens: more spare recordings, and read more padding

Action = Callable[[], None]
Forward = Callable[[Tensor, Tensor], Tensor]


class Unrecordable(Exception):
    """The step reads values of the device on the host."""


class RecordedStep:
    """Feeds the rows of a batch, by a recording where there can be one.

    A recorded step has the rows of its layout, in the order in which they stood on their shelves. Idle rows,
    those that have left since, write and attend to the first entry of their places, which are free.

    Parameters
    ----------
    record : callable
        Runs a step once, and returns what repeats it.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        cache: RaggedCache,
        record: Callable[[Action, torch.device], Action],
    ) -> None:
        self._model, self._cache, self._record = model, cache, record
        self._modules = list(model.modules())
        self._layout: Layout | None = None
        self._repeat: Action | None = None
        self._age = 0

    def __call__(self, tokens: Tensor, positions: NDArray[np.int64], forward: Forward) -> Tensor | None:
        """Feed tokens [n] at positions [n], which stand in the order of the cache's rows.

        Parameters
        ----------
        forward : callable
            Feeds tokens at positions, once the cache is laid out, and returns logits.

        Returns
        -------
        Tensor or None
            Logits [n, V]. None if nothing was fed: a hook wants to see the step, or it cannot be recorded.
        """
        hooked = any(module._forward_hooks or module._forward_pre_hooks for module in self._modules)
        if hooked or not getattr(self._model, "cuda_graphs", True):
            return None
        if self._layout is None or self._age == _ROOM or not self._cache.fits(self._layout):
            self._begin(self._cache.layout(_ROOM))
            self._take(tokens, positions)
            self._logits = self._forward(forward).clone()  # what does not last is not worth a recording
        elif self._repeat is None:
            self._take(tokens, positions)
            try:
                self._repeat = self._record(partial(self._step, forward), self._cache.device)
            except Unrecordable:
                self._model.cuda_graphs = False  # type: ignore[assignment]
                return None  # what the step has written, the next try writes again
        else:
            self._take(tokens, positions)
            self._repeat()
        self._age += 1
        return self._logits[self._rows]

    def _begin(self, layout: Layout) -> None:
        """Make the tensors that all repeats of a step read."""
        self._layout, self._repeat, self._age = layout, None, 0
        device, n_layers = self._cache.device, len(self._cache.layers)
        self._tokens = torch.zeros(layout.rows, dtype=torch.long, device=device)
        self._inputs = torch.zeros(1 + n_layers, layout.rows, dtype=torch.long, device=device)

    def _take(self, tokens: Tensor, positions: NDArray[np.int64]) -> None:
        """Bring a step's tokens, positions and lengths to where the recording reads them."""
        assert self._layout is not None
        rows = self._cache.rows_of(self._layout)
        inputs = np.zeros(self._inputs.shape, dtype=np.int64)
        inputs[0, rows], inputs[1:, rows] = positions, self._cache.lengths
        self._inputs.copy_(torch.from_numpy(inputs), non_blocking=True)
        self._rows = torch.from_numpy(rows).to(self._cache.device)
        self._tokens[self._rows] = tokens

    def _forward(self, forward: Forward) -> Tensor:
        assert self._layout is not None
        self._cache.lay_out(self._layout, self._inputs[1:])
        return forward(self._tokens, self._inputs[0])

    def _step(self, forward: Forward) -> None:
        self._logits.copy_(self._forward(forward))


def cuda_graph(step: Action, device: torch.device) -> Action:
    """Run a step, and capture it as a CUDA graph.

    Running it loads its kernels, and shows whether it waits for the device: a capture that failed midway
    would leave the process in disorder.

    Raises
    ------
    Unrecordable
        If an operation waits for the device.
    KvguardError
        If the capture fails nevertheless.
    """
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    except RuntimeError as error:
        if "synchronizing" in str(error):
            raise Unrecordable from error
        raise
    finally:
        torch.cuda.set_sync_debug_mode(before)
    graph = torch.cuda.CUDAGraph()
    try:
        with (
            torch.cuda.device(device),
            torch.cuda.graph(graph, stream=_side_stream(device), capture_error_mode="thread_local"),
        ):
            step()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise KvguardError(
            f"decoding: the step cannot be captured as a CUDA graph ({' '.join(str(error).split())[:200]}); "
            "set cuda_graphs: false under models.<name>"
        ) from error
    return graph.replay


@cached
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream of all captures on a device: each stream has a workspace of its own."""
    return torch.cuda.Stream(device)


RECORDERS: dict[str, Callable[[Action, torch.device], Action]] = {"cuda": cuda_graph}
