"""What one forward pass of a reward model gets: packed rows, rows with shared prompts, or padded rows.

packed   several exchanges to a row, each a sequence of its own (rlhf.sequences).
shared   both responses of a pair behind one copy of what their texts have in common. Positions count on from there on
         both branches, and a mask of the whole row lets a token see the tokens before it in its own branch and in the
         common part, nothing else. A causal model computes the same numbers either way; the prompt costs once.
padded   one exchange to a row, with an attention mask: for encoders, and for decoders that cannot tell packed
         sequences apart. The layout's own head pools.

Which of them a model can do is not read from its name but tried out on a few tokens, once, when it is loaded.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rlhf.devices import on_device
from rlhf.models import Model, hidden_states, is_flash, unwrap
from rlhf.reward_heads import last_layer, scalars
from rlhf.sequences import Sample, pack
from rlhf.sharding import passed

SHARED_LEAST = 16
"""Fewer common tokens than this are not worth a mask of their own."""


class Inputs(NamedTuple):
    """`arguments`: the forward pass's. `last`: [s] flat index of each exchange's last token, None where the layout's
    own head pools."""

    arguments: dict[str, Tensor]
    last: Tensor | None


class Abilities(NamedTuple):
    """`packed`: sequences of a row are told apart by restarting positions. `shared`: a mask of the whole row counts."""

    packed: bool
    shared: bool


def members_of(model: Model, inputs: Inputs) -> Tensor:
    """[s, k] raw outputs of the k heads, float32."""

    def forward() -> Tensor:
        if inputs.last is None:
            output: Tensor = model(**inputs.arguments).logits
            return output.float()
        given = inputs.arguments
        states = hidden_states(model, given["input_ids"], given["position_ids"], given.get("attention_mask"))
        return scalars(last_layer(model), states[inputs.last])

    return passed(model, forward)


def packed(samples: Sequence[Sample], device: torch.device) -> Inputs:
    batch = pack(samples, range(len(samples)), device, whole=True)
    return Inputs({"input_ids": batch.ids, "position_ids": batch.positions}, batch.last)


def padded(samples: Sequence[Sample], device: torch.device, pad: int, types: bool) -> Inputs:
    """[s, w] rows, zeros of the mask behind each exchange. types: token types 0 for the prompt, 1 for the response."""
    width = max(sample.length for sample in samples)
    ids = torch.full((len(samples), width), pad, dtype=torch.long)
    mask = torch.zeros((len(samples), width), dtype=torch.long)
    kind = torch.zeros((len(samples), width), dtype=torch.long)
    for row, sample in enumerate(samples):
        ids[row, : sample.length] = torch.tensor([*sample.prompt, *sample.response])
        mask[row, : sample.length] = 1
        kind[row, len(sample.prompt) : sample.length] = 1
    arguments = {"input_ids": ids, "attention_mask": mask} | ({"token_type_ids": kind} if types else {})
    return Inputs({name: on_device(value, device) for name, value in arguments.items()}, None)


class Shared(NamedTuple):
    """A pair as one run of tokens: what both exchanges begin with, then the rest of each (never empty)."""

    common: int
    ids: list[int]
    first: int
    """Where the second branch starts."""


def share(chosen: Sample, rejected: Sample) -> Shared:
    one, other = [*chosen.prompt, *chosen.response], [*rejected.prompt, *rejected.response]
    most = min(len(one), len(other)) - 1  # each branch keeps its last token, where the reward is read
    common = next((at for at in range(most) if one[at] != other[at]), most)
    return Shared(common, [*one, *other[common:]], len(one))


def shared_rows(pairs: Sequence[Shared], device: torch.device, dtype: torch.dtype | None) -> Inputs:
    """One pair to a row; `last` has the chosen response of each pair, then its rejected one.

    dtype: of an additive mask, None for a boolean one (what sdpa wants).
    """
    width = max(len(pair.ids) for pair in pairs)
    ids = torch.zeros((len(pairs), width), dtype=torch.long)
    bounds = torch.tensor([(pair.common, pair.first, len(pair.ids)) for pair in pairs])
    for row, pair in enumerate(pairs):
        ids[row, : len(pair.ids)] = torch.tensor(pair.ids)
    ids, bounds = on_device(ids, device), on_device(bounds, device)
    common, first, end = (bounds[:, column, None] for column in range(3))
    at = torch.arange(width, device=device)[None]
    second = at >= first
    positions = torch.where(second, at - first + common, at)
    # A token of the second branch sees the common part and its own branch; causality does the rest, for the unused
    # end of a row too, which nothing reads.
    hidden = second[:, :, None] & (at >= common)[:, None, :] & ~second[:, None, :]
    seen = ~hidden & (at[:, None, :] <= at[:, :, None])
    mask = seen[:, None]
    if dtype is not None:
        mask = torch.zeros(mask.shape, dtype=dtype, device=device).masked_fill(~mask, torch.finfo(dtype).min)
    rows = torch.arange(len(pairs), device=device) * width
    last = torch.stack([rows + first[:, 0] - 1, rows + end[:, 0] - 1], 1).flatten()
    return Inputs({"input_ids": ids, "position_ids": positions, "attention_mask": mask}, last)


@torch.no_grad()
def abilities(model: Model, avoid: frozenset[int]) -> Abilities:
    """What `model` can do, by comparison with its own forward pass of single exchanges.

    avoid: ids that mean something to the layout, such as padding. Encoders, whose heads pool otherwise, can do neither.
    """
    size = unwrap(model).config.get_text_config().vocab_size
    usable = [token for token in range(min(size, len(avoid) + 16)) if token not in avoid]
    if len(usable) < 4 or not hasattr(unwrap(model), "score"):
        return Abilities(False, False)
    a, b, c, d = usable[:4]
    one, other = Sample([a, b, c, d, b], [c, a, d]), Sample([a, b, c, d, b], [d, d, a, c, a])
    device = unwrap(model).device
    # Flash kernels take no float32, and of frozen weights some may be in bfloat16 (rlhf.models.narrow).
    loose = is_flash(model) or any(value.dtype != torch.float32 for value in model.parameters())
    kernel_type = torch.autocast(device.type, torch.bfloat16) if loose else contextlib.nullcontext()
    with kernel_type:
        single = torch.cat(
            [model(input_ids=torch.tensor([[*s.prompt, *s.response]], device=device)).logits for s in (one, other)]
        ).float()

    def agrees(inputs: Inputs) -> bool:
        try:
            with kernel_type:
                found = members_of(model, inputs)
        except (TypeError, ValueError, RuntimeError, AttributeError):
            return False
        return torch.allclose(found, single, rtol=5e-2 if loose else 1e-4, atol=5e-2 if loose else 1e-5)

    can_pack = agrees(packed([one, other], device))
    can_share = can_pack and _whole_masks(model) and agrees(shared_rows([share(one, other)], device, mask_type(model)))
    return Abilities(can_pack, can_share)


def mask_type(model: Model) -> torch.dtype | None:
    config = unwrap(model).config
    return None if config._attn_implementation == "sdpa" else unwrap(model).dtype


def _whole_masks(model: Model) -> bool:
    """A mask of the whole row replaces the ones that layers would make for themselves: none of them may be narrower
    than causal, and the kernel must take one."""
    config = unwrap(model).config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    kernel = unwrap(model).config._attn_implementation in ("sdpa", "eager")
    return kernel and kinds == {"full_attention"} and window is None
