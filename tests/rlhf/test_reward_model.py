"""Reward model. CHECKS: 5, 6, 13, 21, 22, 24, 29."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from rlhf import reward_metrics
from rlhf.config import Optimisation, RewardConfig
from rlhf.devices import Compute
from rlhf.memory import Budget
from rlhf.models import load_policy, save_model, trainable
from rlhf.reward_model import RewardModel, init_head, load_reward_model, score_head
from rlhf.reward_training import Pair, _backward, train_reward_model
from rlhf.sequences import Sample
from rlhf.tokens import make_codec, same_vocabulary
from store.errors import RlaifError
from tests.rlhf.conftest import MODELS, WORDS, make_tokenizer
from tests.rlhf.test_logprobs import random_samples


def classifier(family: str, folder: Path, compute: Compute, pad: str | None = "<pad>") -> RewardModel:
    MODELS[family]().save_pretrained(folder)
    make_tokenizer(pad=pad).save_pretrained(folder)
    torch.manual_seed(0)
    return load_reward_model(str(folder), compute, trained=True)


def test_new_head_has_its_scale() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(4095, 30)
    init_head(layer)
    assert float(layer.weight.std()) == pytest.approx(1 / math.sqrt(4096), rel=0.02)
    assert float(layer.bias.abs().max()) == 0


@pytest.mark.parametrize("family", sorted(MODELS))
@pytest.mark.parametrize("pad", ["<pad>", "<eos>"])
def test_mixed_lengths_equal_singles_and_the_layouts_own_forward(
    family: str, pad: str, tmp_path: Path, compute: Compute
) -> None:
    reward = classifier(family, tmp_path / "m", compute, pad)
    samples = [Sample(s.prompt, [*s.response, 2]) for s in random_samples(8)]
    batched = reward.score_samples(samples, compute, Budget(10_000))
    singles = [float(reward.score_samples([s], compute, Budget(1))[0]) for s in samples]
    torch.testing.assert_close(batched, torch.tensor(singles), atol=1e-5, rtol=0)
    save_model(tmp_path / "saved", reward.model, reward.codec)
    from transformers import AutoModelForSequenceClassification

    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved").eval()
    with torch.no_grad():
        own = [float(plain(input_ids=torch.tensor([[*s.prompt, *s.response]])).logits[0, 0]) for s in samples]
        torch.testing.assert_close(batched, torch.tensor(own), atol=1e-5, rtol=0)
        if plain.config.pad_token_id is not None:
            width = max(s.length for s in samples)
            for left in (False, True):
                ids, mask = torch.full((8, width), plain.config.pad_token_id), torch.zeros(8, width, dtype=torch.long)
                for row, s in enumerate(samples):
                    where = slice(width - s.length, width) if left else slice(0, s.length)
                    # Its padding id must not occur at the end, which is what set_padding is for.
                    ids[row, where], mask[row, where] = torch.tensor([*s.prompt, *s.response]), 1
                positions = (mask.cumsum(1) - 1).clamp(min=0)
                padded = plain(input_ids=ids, attention_mask=mask, position_ids=positions).logits[:, 0]
                torch.testing.assert_close(batched, padded, atol=1e-4, rtol=0)


def test_the_shift_survives_the_folder(tmp_path: Path, compute: Compute) -> None:
    reward = classifier("llama", tmp_path / "m", compute)
    exchanges = [("dog", "cat"), ("sea", "blue"), ("", "")]
    raw = reward.score(exchanges, compute, Budget(1000))
    reward.shift = -float(raw.mean())
    again = load_reward_model(str(save_model(tmp_path / "saved", reward.model, reward.codec)), compute)
    scores = again.score(exchanges, compute, Budget(1000))
    assert float(scores.mean()) == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(scores, raw - raw.mean())
    assert torch.equal(score_head(again.model).weight, score_head(reward.model).weight)


def test_text_is_cut_from_its_start_and_keeps_its_end(tmp_path: Path, compute: Compute) -> None:
    reward = classifier("llama", tmp_path / "m", compute)
    short = RewardModel(reward.model, reward.codec, 6)
    whole = reward.encode("the cat sees dog", "red fish")
    cut = short.encode("the cat sees dog", "red fish")
    assert cut.length == 6
    assert list(cut.response) == list(whole.response)
    assert list(cut.prompt) == list(whole.prompt)[-3:]
    tail = short.encode("dog", "red " * 50)
    assert tail.length == 6
    assert tail.response[-1] == 2
    assert len(tail.prompt) == 1


def pairs_of(reward: RewardModel, count: int = 24) -> list[Pair]:
    """The response with "yes" wins, with a soft label."""
    words = ["dog", "cat", "sea", "sky", "red", "blue"]
    pairs = []
    for index in range(count):
        prompt, word = f"why {words[index % 6]}", words[index % 5]
        good, bad = reward.encode(prompt, f"yes {word}"), reward.encode(prompt, f"{word} no {word}")
        pairs.append(Pair(good, bad, 0.9, 1.0 + index % 3))
    return pairs


def test_training_learns_keeps_the_best_and_stops_early(tmp_path: Path, compute: Compute) -> None:
    reward = classifier("llama", tmp_path / "m", compute)
    pairs = pairs_of(reward)
    wrong = [pair._replace(chosen=pair.rejected, rejected=pair.chosen) for pair in pairs[:6]]
    config = RewardConfig(
        epochs=6, batch_size=8, evaluations_per_epoch=1, optimisation=Optimisation(learning_rate=3e-3)
    )
    fit = train_reward_model(reward, pairs[6:], pairs[:6], config, 0, compute)
    assert fit.curve[-1]["validation_accuracy"] == 1
    best = min(fit.curve, key=lambda row: row["validation_log_loss"])
    assert best["step"] == fit.best_step
    # Held-out pairs that contradict training: only the earliest look can be the best.
    fit = train_reward_model(reward, pairs[6:], wrong, config.model_copy(update={"patience": 2}), 0, compute)
    assert len(fit.curve) <= 4
    assert fit.steps < 14


@pytest.mark.parametrize("budget", [1, 37, 100_000])
def test_gradient_does_not_depend_on_the_micro_batch(tmp_path: Path, compute: Compute, budget: int) -> None:
    reward = classifier("llama", tmp_path / "m", compute)
    pairs = pairs_of(reward, 8)
    config = RewardConfig(centering=0.1)
    expected = torch.zeros(())
    for pair in pairs:  # the slow way: a pair at a time
        chosen, rejected = (reward.member_rewards(reward.inputs([side]))[0, 0] for side in (pair.chosen, pair.rejected))
        loss = -0.9 * torch.log(torch.sigmoid(chosen - rejected)) - 0.1 * torch.log(torch.sigmoid(rejected - chosen))
        expected = expected + pair.weight * (loss + 0.1 * ((chosen + rejected) / 2) ** 2)
    expected = expected / sum(pair.weight for pair in pairs)
    expected.backward()
    gradients = {name: value.grad.clone() for name, value in trainable(reward.model).items()}
    reward.model.zero_grad()
    assert _backward(reward, pairs, budget, config, compute) == pytest.approx(float(expected.detach()), abs=1e-5)
    for name, value in trainable(reward.model).items():
        torch.testing.assert_close(value.grad, gradients[name], atol=1e-5, rtol=1e-3)


def test_a_loss_that_is_no_number_stops(tmp_path: Path, compute: Compute) -> None:
    reward = classifier("llama", tmp_path / "m", compute)
    with torch.no_grad():
        score_head(reward.model).weight.fill_(float("nan"))
    with pytest.raises(RlaifError, match=r"reward-model step 1 .*is not a number"):
        train_reward_model(reward, pairs_of(reward), [], RewardConfig(), 0, compute)


def test_a_constant_model_wins_nothing() -> None:
    constant = reward_metrics.accuracy(torch.zeros(7), torch.full((7,), 0.9))
    assert (constant["mean"], constant["low"], constant["n"]) == (0.0, 0.0, 7)
    tied = reward_metrics.accuracy(torch.tensor([1.0, -1.0, 2.0]), torch.tensor([0.9, 0.8, 0.5]))
    assert (tied["mean"], tied["n"]) == (0.5, 2)
    assert reward_metrics.accuracy(torch.zeros(0)) == {"mean": None, "low": None, "high": None, "n": 0}


def test_metrics_by_hand() -> None:
    gap, labels = torch.tensor([0.0, 2.0, -1.0]), torch.tensor([0.5, 0.9, 0.7])
    s = [1 / (1 + math.exp(-x)) for x in gap.tolist()]
    expected = -sum(p * math.log(q) + (1 - p) * math.log(1 - q) for p, q in zip(labels.tolist(), s, strict=True)) / 3
    assert reward_metrics.log_loss(gap, labels) == pytest.approx(expected)
    groups = reward_metrics.accuracy_by_group(gap, labels, ["x", "x", "y"])
    assert {name: (found["mean"], found["n"]) for name, found in groups.items()} == {"x": (1.0, 1), "y": (0.0, 1)}
    assert reward_metrics.length_slope(torch.tensor([1.0, 3.0]), torch.tensor([2, 4])) == pytest.approx(14 / 20)
    assert reward_metrics.length_slope(torch.ones(2), torch.zeros(2)) is None


def test_calibration_of_a_perfect_model_lies_on_the_diagonal() -> None:
    torch.manual_seed(0)
    gap = torch.randn(5000).double() * 2
    p = torch.sigmoid(gap)
    flip = p < 0.5  # "chosen" is the side with the larger label
    curve = reward_metrics.calibration_curve(torch.where(flip, -gap, gap), torch.where(flip, 1 - p, p))
    assert sum(row["n"] for row in curve) == 10_000
    assert all(row["predicted"] == pytest.approx(row["observed"]) for row in curve)


def test_policy_and_reward_model_may_have_different_tokenizers(
    policy_folder: Path, tmp_path: Path, compute: Compute
) -> None:
    """The reward model reads text, so other ids for the same words give the same reward."""
    _, codec = load_policy(str(policy_folder), compute)
    other = make_codec(make_tokenizer(words=WORDS[::-1]))
    assert not same_vocabulary(codec, other)
    reward = classifier("llama", tmp_path / "m", compute)
    mine, theirs = codec.response_ids("yes the dog"), other.response_ids("yes the dog")
    assert mine != theirs
    exchanges = [("why", codec.text(mine)), ("why", other.text(theirs))]
    first, second = reward.score(exchanges, compute, Budget(1000)).tolist()
    assert first == second
    assert list(reward.encode(*exchanges[1]).response) == mine
