"""The loop of generation: a batch that finished rows leave and new rows enter at any step (continuous batching).

Iteration-level scheduling (Yu et al. 2022, "Orca", OSDI): the batch is made anew at each step, so no row waits for a
longer one, and no arithmetic is spent on rows that have ended. Rows that end are replaced in place by the last ones;
once enough slots are free, the next prompts are read together and enter behind them. Several responses of one prompt
that enter together share its prefill. Prompts are padded on the right to the longest that enters, which causal
attention never sees.

A response depends on the weights, its prompt and its seed; on the batch it happened to be generated in only by
rounding, which now and then decides a token in bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlhf.config import Decoding
from rlhf.generation.draw import sample_tokens, uniform_noise
from rlhf.models import Model, head, trunk

ENTER_SHARE = 8
"""New rows enter once 1 / ENTER_SHARE of the slots is free: reading prompts one at a time would cost a pass each."""


class Generated(NamedTuple):
    """One response. `ids`: the sampled tokens; a stop token is the last one if and only if it was sampled.

    `logprob`: log p(y|x) at temperature 1, NaN from an engine that was asked for the others alone.
    `sampling_logprobs`: each token's log-prob at the sampling temperature, over the full distribution also where top_p
    or top_k cut it; empty from an engine that was asked for `logprob` alone. `finish_reason`: stop or length.
    """

    ids: list[int]
    logprob: float
    sampling_logprobs: list[float]
    finish_reason: str


@torch.no_grad()
def generate(
    model: Model,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    decoding: Decoding,
    stop_ids: frozenset[int],
    *,
    batch_size: int = 256,
    autocast: Callable[[], Any] | None = None,
    on_done: Callable[[int], None] | None = None,
) -> list[Generated]:
    """One response a prompt, in their order.

    prompts: ids, each at least one. seeds: one a prompt, see `row_seed`. batch_size: most rows that run side by side.
    on_done: told the number of finished rows. Raises UsageError for a family that the cache does not know.
    """
    if not prompts:
        return []
    training = model.training
    model.eval()  # with gradient checkpointing, transformers drops the cache in training mode
    try:
        with autocast() if autocast is not None else torch.no_grad():
            batch = _Batch(model, prompts, seeds, decoding, stop_ids, min(batch_size, len(prompts)))
            finished = 0
            while batch.enter() or batch.running:
                left = batch.draw()
                if left and on_done is not None:
                    on_done(finished := finished + left)
                if batch.running:
                    batch.step()
            return batch.results()
    finally:
        model.train(training)


class _Batch:
    """The rows that run, dense in slots [0, running), and the records of all."""

    def __init__(
        self,
        model: Model,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        decoding: Decoding,
        stop_ids: frozenset[int],
        slots: int,
    ) -> None:
        # transformers is heavy, and most that import this room do not generate.
        from rlhf.generation.cache import SlotCache

        self.device = next(model.parameters()).device
        self.body, self.head = trunk(model), head(model)
        self.decoding, self.slots = decoding, slots
        self.cache = SlotCache(model.config, slots, self.device)
        self.stops = torch.tensor(sorted(stop_ids), dtype=torch.long, device=self.device)
        self.prompts = prompts
        # Sorted by length, prompts that enter together have little padding; stable, so equal prompts are neighbours.
        self.waiting = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), tuple(prompts[i])))
        self.waiting.reverse()  # taken from the end
        self.noise = uniform_noise(seeds, decoding.max_new_tokens).to(self.device)
        shape = (len(prompts), decoding.max_new_tokens)
        self.tokens = torch.zeros(shape, dtype=torch.long, device=self.device)
        self.logprobs = torch.zeros(shape, device=self.device)
        self.total = torch.zeros(len(prompts), device=self.device)
        self.lengths = torch.zeros(len(prompts), dtype=torch.long, device=self.device)
        self.stopped = torch.zeros(len(prompts), dtype=torch.bool, device=self.device)
        # Of the running rows: which request each is, its drawn tokens, the last one, and the next one's logits.
        self.index = torch.zeros(0, dtype=torch.long, device=self.device)
        self.drawn = torch.zeros(0, dtype=torch.long, device=self.device)
        self.last = torch.zeros(0, dtype=torch.long, device=self.device)
        self.logits = torch.zeros(0, 0, device=self.device)
        self.widths: list[int] = []  # tokens of each row, as the device's lengths, to know the widest without asking it

    @property
    def running(self) -> int:
        return len(self.widths)

    def enter(self) -> bool:
        """Let the next prompts in where enough slots are free. True where some came."""
        free = self.slots - self.running
        wanted = min(len(self.waiting), free)
        if not wanted or (self.running and wanted < min(len(self.waiting), max(1, self.slots // ENTER_SHARE))):
            return False
        rows = [self.waiting.pop() for _ in range(wanted)]
        unique: list[Sequence[int]] = []
        copies: list[int] = []
        for row in rows:
            if not unique or list(unique[-1]) != list(self.prompts[row]):
                unique.append(self.prompts[row])
            copies.append(len(unique) - 1)
        longest = max(len(prompt) for prompt in unique)
        ids = torch.tensor([[*prompt, *[0] * (longest - len(prompt))] for prompt in unique]).to(self.device)
        lengths = torch.tensor([len(prompt) for prompt in unique]).to(self.device)
        select = torch.tensor(copies).to(self.device)
        self.cache.enter(select, longest)
        states = self._forward(ids, torch.arange(longest, device=self.device).expand(len(unique), -1), None)
        self.cache.entered(lengths[select])
        logits = self.head(states[torch.arange(len(unique), device=self.device), lengths - 1]).float()[select]
        index = torch.tensor(rows).to(self.device)
        self.index = torch.cat([self.index, index])
        self.drawn = torch.cat([self.drawn, torch.zeros_like(index)])
        self.logits = torch.cat([self.logits, logits]) if self.running else logits
        self.widths += [len(self.prompts[row]) for row in rows]
        return True

    def draw(self) -> int:
        """Draw a token for each row; rows that end leave. Returns how many did."""
        index, drawn = self.index, self.drawn
        chosen, at_temperature, at_one = sample_tokens(self.logits, self.noise[index, drawn], self.decoding)
        self.tokens[index, drawn] = chosen
        self.logprobs[index, drawn] = at_temperature
        self.total[index] += at_one
        self.drawn, self.last = drawn + 1, chosen
        self.lengths[index] = self.drawn
        stopped = torch.isin(chosen, self.stops)
        self.stopped[index] = stopped
        return self._leave((stopped | (self.drawn == self.decoding.max_new_tokens)).tolist())

    def step(self) -> None:
        """One forward pass over the last tokens."""
        self.widths = [width + 1 for width in self.widths]
        mask = self.cache.step(max(self.widths))
        states = self._forward(self.last[:, None], self.cache.lengths[:, None], mask)
        self.cache.stepped()
        self.logits = self.head(states[:, 0]).float()

    def results(self) -> list[Generated]:
        # One transfer for all rows: a copy a row would stall a GPU.
        columns = (self.tokens, self.logprobs, self.total, self.lengths, self.stopped)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return [
            Generated(ids[:length], total, logprobs[:length], "stop" if stopped else "length")
            for ids, logprobs, total, length, stopped in rows
        ]

    def _forward(self, ids: Tensor, positions: Tensor, mask: Any) -> Tensor:
        """[b, w, d] hidden states."""
        output = self.body(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=self.cache, use_cache=True
        )
        states: Tensor = output.last_hidden_state
        return states

    def _leave(self, done: list[bool]) -> int:
        left = sum(done)
        if not left:
            return 0
        rest = len(done) - left
        holes = [row for row in range(rest) if done[row]]
        moved = [row for row in range(rest, len(done)) if not done[row]]
        order = list(range(rest))
        for hole, row in zip(holes, moved, strict=True):
            order[hole] = row
        self.widths = [self.widths[row] for row in order]
        keep = torch.tensor(order, dtype=torch.long).to(self.device)
        self.cache.leave(keep, *(torch.tensor(rows, dtype=torch.long).to(self.device) for rows in (moved, holes)))
        self.index, self.drawn, self.last = self.index[keep], self.drawn[keep], self.last[keep]
        return left
