"""A tiny random language model with its tokenizer, judge folders around it, pairs to judge, and servers of judges."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from judges.judge import Judge, load_judge
from judges.pairs import Pair, pair_id

from .fault_server import FaultServer, Script

PROMPT = """Which answer is better? Say 1 or 2.
<question>{{ prompt }}</question>
<answer_1>{{ first }}</answer_1>
<answer_2>{{ second }}</answer_2>
{% for principle in principles %}
- {{ principle }}
{% endfor %}
Answer:"""

TEXT = "the a cat dog river runs sleeps blue old in on under bridge 1 2 Answer: Which better? Say or"
WORDS = TEXT.split()


def make_pair(number: int, a: str | None = None, b: str | None = None, prompt: str | None = None, **other: Any) -> Pair:
    prompt_id, one, two = f"prompt{number}", f"rollout{number}a", f"rollout{number}b"
    long = " ".join(WORDS[(number + i) % 10] for i in range(1 + number % 7))
    return Pair(
        pair_id(prompt_id, one, two),
        prompt_id,
        prompt if prompt is not None else f"what runs {long}?",
        one,
        two,
        a if a is not None else f"the river {number} runs {long}",
        b if b is not None else f"a cat {number} sleeps",
        **{"group": "g", "split": "train", **other},
    )


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of random weights (two layers, width 32, context 512) that knows no language."""
    folder = tmp_path_factory.mktemp("tiny-model")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<s>", "</s>", "<pad>", "[INST]", "[/INST]"]
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT, PROMPT] * 3, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["[INST]", "[/INST]"],
    )
    fast.save_pretrained(folder)
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=fast.bos_token_id,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(folder, safe_serialization=True)
    return folder


Folder = Callable[..., Path]


@pytest.fixture
def judge_folder(tmp_path: Path, tiny_model: Path) -> Folder:
    """Writes a judge folder, around the tiny model unless told otherwise; a setting of `...` is left out."""

    def write(
        name: str = "tiny", prompt_text: str | None = PROMPT, files: dict[str, str] | None = None, **settings: Any
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        base: dict[str, Any] = {"name": name, "backend": "transformers", "model": str(tiny_model), "min_mass": 0.0}
        base |= {"device": "cpu"} if settings.get("backend", "transformers") == "transformers" else {}
        values = {key: value for key, value in {**base, **settings}.items() if value is not ...}
        (folder / "judge.yaml").write_text(yaml.safe_dump(values))
        if prompt_text is not None:
            (folder / "prompt.jinja").write_text(prompt_text)
        for file, text in (files or {}).items():
            (folder / file).write_text(text)
        return folder

    return write


@pytest.fixture
def tiny_judge(judge_folder: Folder) -> Judge:
    return load_judge(judge_folder())


RUBRIC = {
    "version": 1,
    "rules": [
        {"name": "empty", "kind": "empty", "amount": 1.0},
        {"name": "too long", "kind": "long", "words": 5, "each": 0.1, "most": 0.5},
    ],
}


@pytest.fixture
def rubric_judge(judge_folder: Folder) -> Judge:
    """Prefers the shorter response, beyond five words."""
    folder = judge_folder(
        "rules",
        None,
        files={"rubric.yaml": json.dumps(RUBRIC)},
        backend="rubric",
        rubric="rubric.yaml",
        model=...,
        min_mass=...,
        scale=0.1,
    )
    return load_judge(folder)


KEY = "sk-very/secret+0123456789"
Serve = Callable[[Script], FaultServer]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Starts servers that answer by a script; the key that their judges send is in TEST_JUDGE_KEY."""
    monkeypatch.setenv("TEST_JUDGE_KEY", KEY)
    # Pauses are tested in virtual time; here they only cost time.
    monkeypatch.setattr("judges.backends.limits.FIRST_DELAY_S", 0.001)
    monkeypatch.setattr("judges.backends.limits.MAX_DELAY_S", 0.05)
    monkeypatch.setattr("judges.backends.breaker.RETURN_S", 0.01)
    servers: list[FaultServer] = []

    def start(script: Script) -> FaultServer:
        servers.append(FaultServer(script))
        return servers[-1]

    yield start
    for server in servers:
        server.close()
