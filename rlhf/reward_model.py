"""The reward model: a transformer with a scalar head, in the layout of AutoModelForSequenceClassification.

    r(x, y) = w . h + b

On a decoder h is the hidden state of the last real token, which is the end token: the model reads text, and closes
every response with its own end token, whether or not the policy had sampled one (the penalty for a missing stop is
PPO's). On an encoder h is what the layout's own head pools, from the text pair (prompt, response).

b shifts the reward so that reference responses score 0 in the mean. A decoder's layout has no bias on its head, so b is
the field `reward_shift` of config.json; whoever loads the folder with AutoModelForSequenceClassification gets r - b,
which orders responses in the same way. A fixed scale is in the weights themselves, so every loader sees it;
`reward_scale` says how many log-odds one unit of reward is.

An ensemble has k heads on one trunk, or k whole models, and scores mean - pessimism * std over its members (Coste et
al. 2023, arXiv 2310.02743, with std where they take the variance). Its folder is that of a plain reward model for
everybody else: the mean of the heads, or the first of the models; see `save_reward_model`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from rlhf import reward_batches as batches
from rlhf.devices import Compute
from rlhf.memory import Budget
from rlhf.models import Model, load_pretrained, merged, save_model, unwrap
from rlhf.reward_heads import (
    init_head,
    last_layer,
    mean_head,
    read_heads,
    scale_head,
    score_head,
    widen,
    write_heads,
)
from rlhf.sequences import Sample, split, split_padded
from rlhf.sharding import divided
from rlhf.tokens import Codec, load_codec
from store.errors import UsageError
from store.files import read_json, write_json

__all__ = ["RewardModel", "combine", "init_head", "load_reward_model", "save_reward_model", "score_head"]

SHIFT, SCALE = "reward_shift", "reward_scale"
ENSEMBLE = "reward_ensemble.json"
NEW = ("score", "classifier", "classification_head", "pooler", "head.dense", "head.norm")
"""Weights that a checkpoint of a language model lacks, because they belong to the head."""


@dataclass
class Ensemble:
    """What makes one score of several members. `shift`: added to it, so that reference responses score 0."""

    pessimism: float = 0.0
    shift: float = 0.0
    others: list[RewardModel] = field(default_factory=list)
    """Members that are models of their own, beside the heads of this one."""


def combine(members: Tensor, pessimism: float) -> Tensor:
    """[b] mean - pessimism * std over the members' rewards [b, k]; the std of the k members that there are (over k)."""
    if members.shape[1] == 1:
        return members[:, 0]
    return members.mean(1) - pessimism * members.std(1, unbiased=False)


class RewardModel:
    """A sequence-classification model with its tokenizer, the longest input it was made for, and its shift."""

    def __init__(self, model: Model, codec: Codec, max_length: int | None = None):
        self.model = model
        self.codec = codec
        limits = [limit for limit in (max_length, codec.context) if limit is not None]
        self.max_length = min(limits) if limits else None
        self.offsets = torch.zeros(last_layer(model).out_features, device=unwrap(model).device)
        self.ensemble = Ensemble()
        self.abilities = batches.abilities(model, _reserved(model, codec))

    @property
    def shift(self) -> float:
        """b, of this model alone: the mean of its heads where it has several."""
        return float(getattr(unwrap(self.model).config, SHIFT, 0.0))

    @shift.setter
    def shift(self, value: float) -> None:
        setattr(unwrap(self.model).config, SHIFT, float(value))

    @property
    def scale(self) -> float:
        """Log-odds in one unit of reward: sigmoid(scale * difference) is the probability that a pair's first wins."""
        return float(getattr(unwrap(self.model).config, SCALE, 1.0))

    def rescale(self, factor: float) -> None:
        """Multiply every reward by `factor`, of all members, and remember it."""
        scale_head(self.model, factor)
        self.shift *= factor
        self.offsets *= factor
        self.ensemble.shift *= factor
        setattr(unwrap(self.model).config, SCALE, self.scale / factor)
        for other in self.ensemble.others:
            other.rescale(factor)

    @property
    def heads(self) -> int:
        return len(self.offsets)

    @property
    def causal(self) -> bool:
        """Whether the reward is read at the last token of a causal model, which a critic can start from."""
        return self.abilities.packed

    def encode(self, prompt: str, response: str) -> Sample:
        """Ids of a complete exchange. One that is too long loses the start of its prompt, then of its response."""
        if not self.causal and not self.codec.tokenizer.chat_template:
            return _encode_pair(self.codec, prompt, response, self.max_length)
        head, tail = self.codec.prompt_ids(prompt), self.codec.response_ids(response)
        if self.max_length is not None and len(head) + len(tail) > self.max_length:
            tail = tail[-(self.max_length - 1) :]
            head = head[-(self.max_length - len(tail)) :]
        return Sample(head, tail)

    def inputs(self, samples: Sequence[Sample]) -> batches.Inputs:
        """One forward pass over `samples`."""
        device = unwrap(self.model).device
        if self.abilities.packed:
            return batches.packed(samples, device)
        config, tokenizer = unwrap(self.model).config, self.codec.tokenizer
        pad = next((p for p in (config.pad_token_id, tokenizer.pad_token_id) if p is not None), self.codec.pad_id)
        types = "token_type_ids" in tokenizer.model_input_names and getattr(config, "type_vocab_size", 0) > 1
        return batches.padded(samples, device, pad, types)

    def parts(self, lengths: Sequence[int], tokens: int) -> list[list[int]]:
        """Indices of sequences by forward pass, of about the same length each."""
        if self.abilities.packed:
            order = sorted(range(len(lengths)), key=lambda index: lengths[index])
            return [[order[at] for at in part] for part in split([lengths[index] for index in order], tokens)]
        # Without padding, transformers refuses batches.
        return split_padded(lengths, tokens if unwrap(self.model).config.pad_token_id is not None else 1)

    def member_rewards(self, inputs: batches.Inputs) -> Tensor:
        """[s, k] rewards of this model's k heads, shift included."""
        return batches.members_of(self.model, inputs) + (self.offsets + self.shift)

    @torch.no_grad()
    def score(self, exchanges: Sequence[tuple[str, str]], compute: Compute, budget: Budget) -> Tensor:
        """[b] rewards of (prompt, response) texts, float32 on the CPU."""
        return self.score_samples([self.encode(*exchange) for exchange in exchanges], compute, budget)

    @torch.no_grad()
    def score_samples(self, samples: Sequence[Sample], compute: Compute, budget: Budget) -> Tensor:
        """[b] rewards of encoded exchanges, float32 on the CPU."""
        members = self.score_members(samples, compute, budget)
        return combine(members, self.ensemble.pessimism) + self.ensemble.shift

    @torch.no_grad()
    def score_members(self, samples: Sequence[Sample], compute: Compute, budget: Budget) -> Tensor:
        """[b, members] what each member of the ensemble gives, float32 on the CPU."""

        def share(mine: Sequence[Sample]) -> Sequence[Tensor]:
            def work(tokens: int) -> Tensor:
                rewards = torch.zeros(len(mine), self.heads)
                for part in self.parts([sample.length for sample in mine], tokens):
                    with compute.autocast():
                        rewards[part] = self.member_rewards(self.inputs([mine[index] for index in part])).cpu()
                return rewards

            return budget.run(work, "the rewards").unbind()

        rows = divided(self.model, compute, samples, share)
        own = torch.stack(rows) if rows else torch.zeros(0, self.heads)
        return torch.cat([own, *(one.score_members(samples, compute, budget) for one in self.ensemble.others)], 1)


def load_reward_model(
    name: str,
    compute: Compute,
    *,
    trained: bool = False,
    max_length: int | None = None,
    heads: int = 1,
    ensemble: bool = True,
) -> RewardModel:
    """A reward model from its folder, or the start of one from a language model or encoder, whose head is then new.

    heads: how many there are; several always start new. ensemble: an ensemble with all its members; False for the plain
    model that others see, which a critic starts from. A new head is drawn from N(0, 1 / (d + 1)), so that first rewards
    are small (Huang et al. 2024). Set torch's seed before. Raises UsageError where `name` is neither.
    """
    from transformers import AutoModelForSequenceClassification

    allowed = NEW if trained else ()
    model = load_pretrained(
        AutoModelForSequenceClassification, name, compute, trained=trained, may_lack=allowed, num_labels=1
    )
    codec = load_codec(name, model.config)
    if not _is_reward_model(name) or heads > 1:  # heads that start alike would stay alike
        layer = last_layer(model)
        if heads > 1:
            widen(model, layer.weight.new_zeros(heads, layer.in_features), None)
        init_head(last_layer(model))
    set_padding(model, codec)
    if not ensemble:
        return RewardModel(model, codec, max_length)
    saved = read_heads(Path(name))
    if saved is not None:
        widen(model, saved["weight"], saved.get("bias"))
    reward_model = RewardModel(model, codec, max_length)
    if saved is not None:
        reward_model.offsets = saved["offset"].to(reward_model.offsets.device)
    if (Path(name) / ENSEMBLE).is_file():
        reward_model.ensemble = _read_ensemble(Path(name), compute, max_length)
    return reward_model


def _read_ensemble(folder: Path, compute: Compute, max_length: int | None) -> Ensemble:
    value = read_json(folder / ENSEMBLE)
    try:
        members = [load_reward_model(str(folder / name), compute, max_length=max_length) for name in value["members"]]
        return Ensemble(float(value["pessimism"]), float(value["shift"]), members)
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{folder / ENSEMBLE} is not the description of an ensemble: train the reward model again."
        ) from error


def save_reward_model(folder: Path, reward_model: RewardModel) -> Path:
    """Write the reward model as a Hugging Face folder, whole or not at all; adapters are merged.

    Of an ensemble with k heads the folder's own head is their mean, and reward_heads/ holds them. Of an
    ensemble of models the folder is the first one, and member-1, member-2, ... below it are the others, each a whole
    reward model. reward_ensemble.json holds pessimism, shift and the members' folders. Other programs, which read none
    of these, see a plain reward model.
    """
    model = reward_model.model = merged(reward_model.model)
    ensemble, many = reward_model.ensemble, reward_model.heads > 1
    layer = last_layer(model)
    weight, bias = layer.weight.detach().clone(), None if layer.bias is None else layer.bias.detach().clone()

    def beside(path: Path) -> None:
        if many:
            widen(model, weight, bias)
            write_heads(path, model, reward_model.offsets)
        if not many and not ensemble.others:
            return
        names = [f"member-{number}" for number in range(1, len(ensemble.others) + 1)]
        for name, other in zip(names, ensemble.others, strict=True):
            save_reward_model(path / name, other)
        write_json(path / ENSEMBLE, {"pessimism": ensemble.pessimism, "shift": ensemble.shift, "members": names})

    if many:
        mean_head(model)
    try:
        return save_model(folder, model, reward_model.codec, beside)
    finally:
        if many and last_layer(model).out_features != len(weight):
            widen(model, weight, bias)


def _is_reward_model(name: str) -> bool:
    from transformers import AutoConfig

    architectures = AutoConfig.from_pretrained(name).architectures or []
    return any("SequenceClassification" in architecture for architecture in architectures)


def _reserved(model: Model, codec: Codec) -> frozenset[int]:
    ids = {unwrap(model).config.pad_token_id, *getattr(codec.tokenizer, "all_special_ids", []), *codec.stop_ids}
    return frozenset(token for token in ids if token is not None)


def _encode_pair(codec: Codec, prompt: str, response: str, most: int | None) -> Sample:
    """The tokenizer's own form of a text pair, such as [CLS] prompt [SEP] response [SEP]; cut as `encode` says."""
    backend = getattr(codec.tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UsageError(f"The tokenizer of {codec.name} is no fast tokenizer, which an encoder needs: convert it.")
    first, second = (backend.encode(codec.neutralise(text), add_special_tokens=False) for text in (prompt, response))
    if most is not None:
        room = most - backend.num_special_tokens_to_add(True)
        if len(first) + len(second) > room:
            second.truncate(max(0, room - 1), direction="left")
            first.truncate(max(0, room - len(second)), direction="left")
    whole = backend.post_process(first, second)
    start = next((at for at, part in enumerate(whole.sequence_ids) if part == 1), len(whole.ids) - 1)
    return Sample(whole.ids[:start], whole.ids[start:])


def set_padding(model: Model, codec: Codec) -> None:
    """Tell the layout's own forward pass which id is padding.

    A decoder's reads the reward at the last token that differs from the padding id, so an id that ends responses must
    not be it. Without a suitable id transformers refuses batches, which is better than a silent misreading. An encoder
    goes by its mask and keeps the id that it was trained with.
    """
    if not hasattr(model, "score"):
        return
    tokenizer = codec.tokenizer
    for candidate in (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id):
        if candidate is not None and candidate not in codec.stop_ids:
            model.config.pad_token_id = candidate
            return
    model.config.pad_token_id = None
