"""Models, tokenizers and responses at the edge of what PPO takes, each through a whole update or two."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.devices import Compute
from rlhf.models import snapshot
from rlhf.ppo.actors import load_actors
from rlhf.ppo.trainer import train
from rlhf.sampling import Prompt
from store.errors import UsageError
from tests.rlhf.conftest import WORDS, make_gpt2, make_llama, make_tokenizer
from tests.rlhf.ppo_world import PROMPTS, config_of, count_dogs


def save(folder: Path, model: Any, tokenizer: Any) -> str:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def make_qwen2() -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"vocab_size": len(WORDS) + 5, "eos_token_id": 2, "pad_token_id": 0, "bos_token_id": None}
    options = {"num_key_value_heads": 1, "max_position_embeddings": 64, "initializer_range": 0.3}
    return Qwen2ForCausalLM(Qwen2Config(**sizes, **ids, **options, tie_word_embeddings=True)).eval()


def make_neox() -> Any:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"vocab_size": len(WORDS) + 5, "eos_token_id": 2, "pad_token_id": 0, "bos_token_id": 2}
    options = {"max_position_embeddings": 64, "initializer_range": 0.3, "hidden_dropout": 0.3, "attention_dropout": 0.3}
    return GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, **ids, **options)).eval()


@pytest.mark.parametrize("critic", ["separate", "shared"])
@pytest.mark.parametrize("make", [make_qwen2, make_neox, make_gpt2], ids=["qwen2", "neox", "gpt2"])
def test_other_families_take_an_update(
    make: Callable[[], Any], critic: str, reward_folder: Path, tmp_path: Path, compute: Compute
) -> None:
    """The first pass has ratio one in each family: what was sampled is what is trained."""
    policy = save(tmp_path / "policy", make(), make_tokenizer())
    config = config_of(updates=1, minibatches=1, epochs=1, critic=critic)
    torch.manual_seed(0)
    actors = load_actors(policy, str(reward_folder), config, compute)
    before = snapshot(actors.policy)
    result = train(actors, PROMPTS, config, 0, tmp_path / "c")
    assert result.stopped is None
    assert result.rows[0]["approx_kl"] == pytest.approx(0, abs=1e-6)
    assert result.rows[0]["kl"] == pytest.approx(0, abs=1e-4)
    assert result.rows[0]["grad_norm"] > 0
    assert any(not torch.equal(value, before[name]) for name, value in snapshot(actors.policy).items())


@pytest.mark.parametrize("template", [True, False], ids=["chat", "plain"])
def test_the_padding_token_changes_nothing(
    template: bool, reward_folder: Path, tmp_path: Path, compute: Compute
) -> None:
    """A pad token of its own, pad equal to EOS, and none at all: the same bits, and the end token is trained."""
    found = []
    for pad in ("<pad>", "<eos>", None):
        policy = save(tmp_path / f"{pad}", make_llama(), make_tokenizer(template=template, pad=pad))
        config = config_of(updates=2, batch_size=16)
        torch.manual_seed(0)
        actors = load_actors(policy, str(reward_folder), config, compute)
        # Not the reward model: a response may hold the token <pad>, which is text where it is no special token.
        actors.score = lambda exchanges: torch.tensor([float(text.split().count("dog")) for _, text in exchanges])
        result = train(actors, PROMPTS, config, 0, tmp_path / f"c{pad}")
        assert result.stopped is None
        found.append((snapshot(actors.policy), [row["stop_rate"] for row in result.rows]))
    for weights, stops in found[1:]:
        assert stops == found[0][1]
        assert all(torch.equal(value, found[0][0][name]) for name, value in weights.items())
    end = make_llama().lm_head.weight[2]
    assert not torch.equal(found[1][0]["model.embed_tokens.weight"][2], end)


def test_prompts_that_leave_no_room_are_one_sentence(
    policy_folder: Path, reward_folder: Path, tmp_path: Path, compute: Compute
) -> None:
    config = config_of(decoding={"max_new_tokens": 6})
    actors = load_actors(str(policy_folder), str(reward_folder), config, compute)
    long = [Prompt("p0", "dog " * 57)]
    with pytest.raises(UsageError, match=r"A prompt has \d+ tokens and max_new_tokens is 6, but the context of .* 64"):
        train(actors, long, config, 0, tmp_path / "c")
    # The longest that fits is trained on: 56 words, the two marks of the template, and 6 tokens are 64.
    fits = config_of(updates=1, batch_size=4, minibatches=1, group_size=4)
    assert train(actors, [Prompt("p0", "dog " * 56)], fits, 0, tmp_path / "d").stopped is None


def lengths_of(result: Any) -> list[float]:
    return [row["response_length"] for row in result.rows]


@pytest.mark.parametrize("options", [{}, {"critic": "shared"}, {"advantage": "rloo", "group_size": 2}])
def test_empty_responses_are_trained_on(
    options: dict[str, Any], reward_folder: Path, tmp_path: Path, compute: Compute
) -> None:
    """Any token stops: responses of one token, the stop, with a text of no words."""
    save(tmp_path / "p", make_llama(), make_tokenizer())
    config = config_of(updates=2, **options)
    torch.manual_seed(0)
    actors = load_actors(str(tmp_path / "p"), str(reward_folder), config, compute)
    actors.codec = type(actors.codec)(**{**vars(actors.codec), "stop_ids": frozenset(range(len(WORDS) + 5))})
    result = train(actors, PROMPTS, config, 0, tmp_path / "c")
    assert result.stopped is None
    assert lengths_of(result) == [1, 1, 1]
    assert {sample["response"] for sample in result.samples} == {""}
    assert all(row["stop_rate"] == 1 and row["repetition"] == 0 for row in result.rows)
    assert all(math.isfinite(row["score"]) and math.isfinite(row["reward"]) for row in result.rows)


def test_one_token_responses_are_trained_on(
    policy_folder: Path, reward_folder: Path, tmp_path: Path, compute: Compute
) -> None:
    config = config_of(updates=8, batch_size=32, decoding={"max_new_tokens": 1}, missing_stop_penalty=0)
    torch.manual_seed(0)
    actors = load_actors(str(policy_folder), str(reward_folder), config, compute)
    actors.score = count_dogs
    result = train(actors, PROMPTS, config, 0, tmp_path / "c")
    assert lengths_of(result) == [1] * 9
    scores = [row["score"] for row in result.rows]
    assert sum(scores[-3:]) / 3 > sum(scores[:2]) / 2


def test_a_reward_model_with_another_tokenizer_reads_the_text(
    policy_folder: Path, reward_folder: Path, tmp_path: Path, compute: Compute
) -> None:
    from rlhf.memory import Budget
    from rlhf.reward_model import load_reward_model

    other = tmp_path / "reward"
    for path in reward_folder.iterdir():
        (tmp_path / "reward").mkdir(exist_ok=True)
        (other / path.name).write_bytes(path.read_bytes())
    make_tokenizer(words=WORDS[::-1]).save_pretrained(other)
    config = config_of(updates=2)
    torch.manual_seed(0)
    actors = load_actors(str(policy_folder), str(other), config, compute)
    result = train(actors, PROMPTS, config, 0, tmp_path / "c")
    assert result.stopped is None
    reward_model = load_reward_model(str(other), compute)
    for sample in result.samples:
        expected = reward_model.score([(sample["prompt"], sample["response"])], compute, Budget(1000))
        assert sample["score"] == pytest.approx(float(expected[0]), abs=1e-5)
