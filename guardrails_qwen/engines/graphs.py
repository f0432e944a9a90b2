"""Rows of a few fixed lengths, so that a GPU can run each as one recorded graph of kernels.

A small model on a large GPU spends its time on launching kernels one by one. A recorded graph
launches all of them at once, but runs on the same memory with the same shapes every time: so rows
are padded to one of a few lengths and copied to where the graph reads. Before a recording is used
it is compared with what it stands for.
"""

from __future__ import annotations

import logging
import threading
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from guardrails_qwen.engines.decoder import Decoder, KeysValues
from guardrails_qwen.engines.packing import Row

logger = logging.getLogger("guardrails_qwen")

_SOME_TOKENS = 100
"""Ids below this are in every vocabulary."""

Replay = Callable[[], Tensor]
"""Runs what was recorded on what is in its inputs now; the result lies in the same place always."""
Record = Callable[[Callable[[], Tensor]], Replay]
"""Records a function of tensors that stay where they are."""


class GraphedDecoder:
    """A decoder on rows behind a fixed prefix, recorded once for each padded length.

    Args:
        decoder: The model.
        past: Tokens of the prefix.
        behind: Its keys and values, with room for the longest row.
        lengths: The lengths that rows are padded to, in tokens, rising.
        record: How a graph is recorded: `cuda_recorder()` on a GPU.
    """

    def __init__(
        self,
        decoder: Decoder,
        past: int,
        behind: KeysValues,
        lengths: Sequence[int],
        record: Record,
    ) -> None:
        self._decoder = decoder
        self._past = past
        self._behind = behind
        self._lengths = list(lengths)
        self._record = record
        self._graphs: dict[int, _Graph] = {}

    @property
    def recorded(self) -> int:
        """How many lengths have a graph already."""
        return len(self._graphs)

    def fits(self, row: Row) -> bool:
        """Whether the row is short enough for a graph."""
        return len(row.ids) <= self._lengths[-1] and len(row.reads) <= len(row.ids)

    def __call__(self, row: Row) -> Tensor:
        """Final hidden states [reads, width] of a row at `row.reads`; valid until the next call."""
        length = self._lengths[bisect_left(self._lengths, len(row.ids))]
        graph = self._graph(length)
        graph.inputs.write(row, self._past)
        return graph.replay()[: len(row.reads)]

    def warm_up(self) -> None:
        """Record every length now."""
        for length in self._lengths:
            self._graph(length)

    @torch.inference_mode()
    def _graph(self, length: int) -> _Graph:
        if length not in self._graphs:
            inputs = _Inputs.of(length, self._past, self._decoder.device)
            self._graphs[length] = _Graph(inputs, self._recorded(inputs))
        return self._graphs[length]

    def _recorded(self, inputs: _Inputs) -> Replay:
        """A recording that was seen to do what it should, or else the decoder itself."""

        def run() -> Tensor:
            return self._decoder(inputs.row, self._past, self._behind)

        inputs.row.ids.copy_(torch.arange(len(inputs.row.ids)) % _SOME_TOKENS)
        try:
            replay = self._record(run)
            inputs.row.ids.copy_(inputs.row.ids.flip(0))  # not what was recorded
            found, expected = replay().clone(), run()
            if torch.allclose(found.float(), expected.float(), rtol=0.05, atol=0.05):
                return replay
            reason = "it gave other values"
        except RuntimeError as error:
            reason = type(error).__name__
        logger.warning("rows of %s tokens run unrecorded: %s", len(inputs.row.ids), reason)
        return run


@dataclass(frozen=True, slots=True)
class _Inputs:
    """Where a graph reads its row: padding sees itself only, and nothing sees padding."""

    row: Row

    @classmethod
    def of(cls, length: int, past: int, device: torch.device) -> _Inputs:
        inputs = cls(
            Row(
                ids=torch.zeros(length, dtype=torch.long, device=device),
                positions=torch.zeros(length, dtype=torch.long, device=device),
                mask=torch.zeros(length, past + length, dtype=torch.bool, device=device),
                reads=torch.zeros(length, dtype=torch.long, device=device),
            )
        )
        inputs._pad(0, past)
        return inputs

    @torch.inference_mode()
    def write(self, row: Row, past: int) -> None:
        tokens, to = len(row.ids), self.row
        to.ids[:tokens].copy_(row.ids, non_blocking=True)
        to.positions[:tokens].copy_(row.positions, non_blocking=True)
        to.reads[: len(row.reads)].copy_(row.reads, non_blocking=True)
        to.mask.zero_()
        to.mask[:tokens, : past + tokens].copy_(row.mask, non_blocking=True)
        self._pad(tokens, past)

    def _pad(self, tokens: int, past: int) -> None:
        """A token that sees nothing at all would have no softmax."""
        self.row.mask.diagonal(past)[tokens:] = True


@dataclass(frozen=True, slots=True)
class _Graph:
    inputs: _Inputs
    replay: Replay


def lengths_up_to(most: int) -> list[int]:
    """Lengths to pad to: 64, 96, 128, 192, 256 …, so that no more than a third is padding."""
    steps = [64]
    while steps[-1] < most:
        power = 1 << (steps[-1].bit_length() - 1)
        steps.append(steps[-1] + power // 2)
    return steps


def cuda_recorder(device: torch.device) -> Record:
    """Records CUDA graphs on a device.

    They share memory: only the last that ran has its result there. The process records one at a
    time, and what other threads do on the device meanwhile neither fails nor is recorded.
    """
    with torch.cuda.device(device):
        pool, stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()

    def record(run: Callable[[], Tensor]) -> Replay:
        with _RECORDING, torch.cuda.device(device):
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(2):  # libraries choose kernels and allocate what they need
                    run()
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(
                graph, pool=pool, stream=stream, capture_error_mode="thread_local"
            ):
                result = run()

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay

    return record


_RECORDING = threading.Lock()
