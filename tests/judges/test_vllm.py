"""vLLM for real, on the CPU, with the tiny judges: its offline engine, and its OpenAI-compatible server.

One start of each serves the whole file. What needs no vLLM is tested wherever the tests run.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import psutil
import pyarrow.parquet as pq
import pytest
import yaml
from transformers import AutoTokenizer

from judges.backends.base import Backend, Call, Choice, Reply, Subject, Text, open_backend
from judges.judge import Judge, load_judge
from judges.modes import MODES
from judges.pairs import Pair
from judges.parsing import parse_verdict
from judges.requests import ORDERS, Request
from judges.settings import VLLMSettings
from judges.votes import inquiry_about_pairs
from store.errors import RlaifError, TransientError, UsageError
from store.resources import CONFIGS, DATASETS

needs_vllm = pytest.mark.skipif(
    find_spec("vllm") is None, reason="vLLM is not installed here: `make test-vllm` tests it in its own environment"
)
pytestmark = pytest.mark.vllm

GOOD = CONFIGS / "judges" / "tiny-good"
MODEL = DATASETS / "tiny" / "models" / "tiny-good"
ON_A_CPU = {"dtype": "float32", "enforce_eager": True, "cpu_kv_cache_gib": 1}
CLOSE = 1e-4
"""Between two engines' probabilities; measured over 400 calls: 2e-6."""


def write_judge(folder: Path, like: Path = GOOD, **settings: Any) -> Judge:
    """A copy of a judge's folder with the tiny judge's prompt and these settings; a setting of `...` is left out."""
    folder.mkdir(parents=True)
    shutil.copy(GOOD / "prompt.jinja", folder / "prompt.jinja")
    values = yaml.safe_load((like / "judge.yaml").read_text()) | {"name": folder.name} | settings
    (folder / "judge.yaml").write_text(yaml.safe_dump({key: one for key, one in values.items() if one is not ...}))
    return load_judge(folder)


def offline_judge(folder: Path, **settings: Any) -> Judge:
    values: dict[str, Any] = {"backend": "vllm", "batch_tokens": ..., **ON_A_CPU, **settings}
    return write_judge(folder, **values)


@pytest.fixture(autouse=True)
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The logs of engines that fail are kept; here they go with the test."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    """Calibration pairs, the last one with a prompt that fills whole blocks of the engine's prefix cache."""
    rows = pq.read_table(DATASETS / "tiny" / "calibration.parquet").slice(0, 32).to_pylist()
    found = [Pair(**{name: row[name] for name in Pair.__dataclass_fields__}) for row in rows]
    return [*found, replace(found[0], pair_id="long", prompt=found[0].prompt * 30)]


@pytest.fixture(scope="module")
def logit_bias() -> dict[str, float]:
    """Lets the tiny model, which never learnt to write, close a text that it opened."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    return {str(tokenizer.encode('"', add_special_tokens=False)[0]): 20.0}


def preferences(judge: Judge, pairs: list[Pair], backend: Backend | None = None) -> dict[tuple[str, str], float]:
    """(pair id, order) -> p_a."""
    votes = inquiry_about_pairs(judge, pairs).run(backend, seed=0).to_pylist()
    assert {vote["status"] for vote in votes} == {"scored"}
    return {(vote["pair_id"], vote["order"]): vote["p_a"] for vote in votes}


def apart(one: dict[Any, float], two: dict[Any, float]) -> float:
    assert one.keys() == two.keys()
    return max(abs(one[key] - two[key]) for key in one)


def calls_about(
    judge: Judge, pairs: list[Pair], want: Choice | Text, cell: int = 0, seed: int = 0, prefix: str = ""
) -> list[Call]:
    requests = [Request(pair, order) for pair in pairs for order in ORDERS]
    return [
        Call(f"{prefix}{at}", one.subject, judge.render(one.subject, one.pair.pair_id, ()), want, seed + at, cell)
        for at, one in enumerate(requests)
    ]


def by_id(replies: Iterator[Reply]) -> dict[str, Reply]:
    found = list(replies)
    assert len({reply.call.id for reply in found}) == len(found)
    return {reply.call.id: reply for reply in found}


# What needs no vLLM.


def test_the_side_of_the_judge_loads_no_engine() -> None:
    code = "import sys, judges.backends.vllm; print(sorted({'torch', 'transformers', 'vllm'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_missing_engine_is_named_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("judges.backends.vllm.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"tiny needs the package vllm: pip install 'rlaif\[vllm\]'"):
        open_backend(offline_judge(tmp_path / "tiny"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"engine_args": {"model": "other", "dtype": "half"}}, "engine_args must not hold dtype, model"),
        ({"sampling_args": {"seed": 3}}, "sampling_args must not hold seed"),
        ({"temperature": 3}, "temperature"),
        ({"gpu_memory_utilization": 1.5}, "gpu_memory_utilization"),
    ],
)
def test_settings_that_cannot_be_right_are_refused(tmp_path: Path, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        offline_judge(tmp_path / "tiny", **settings)


def test_only_what_can_change_an_answer_is_in_the_fingerprint(tmp_path: Path) -> None:
    def fingerprint(name: str, **settings: Any) -> str:
        return offline_judge(tmp_path / name, **settings).fingerprint

    plain = fingerprint("plain")
    faster = {"gpu_memory_utilization": 0.5, "tensor_parallel_size": 2, "enforce_eager": False, "start_timeout_s": 9}
    assert fingerprint("faster", cpu_kv_cache_gib=2, **faster) == plain
    others: list[dict[str, Any]] = [
        {"dtype": "bfloat16"},
        {"structured": True},
        {"engine_args": {"max_num_seqs": 4}},
        {"max_model_len": 256},
    ]
    found = {fingerprint(f"other{number}", **settings) for number, settings in enumerate(others)}
    assert len(found - {plain}) == len(others)


def test_the_template_is_a_judge() -> None:
    assert isinstance(load_judge("vllm-offline").settings, VLLMSettings)


# The offline engine.


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory, logit_bias: dict[str, float]) -> Generator[tuple[Judge, Backend]]:
    judge = offline_judge(
        tmp_path_factory.mktemp("judges") / "offline",
        structured=True,
        temperature=1.0,
        parse_attempts=3,
        max_new_tokens=100,
        sampling_args={"logit_bias": logit_bias},
    )
    backend = open_backend(judge)
    yield judge, backend
    backend.close()


@pytest.fixture(scope="module")
def offline_preferences(offline: tuple[Judge, Backend], pairs: list[Pair]) -> dict[tuple[str, str], float]:
    return preferences(offline[0], pairs, offline[1])


@needs_vllm
def test_probabilities_are_those_of_transformers(
    offline_preferences: dict[tuple[str, str], float], pairs: list[Pair], tmp_path: Path
) -> None:
    local = write_judge(tmp_path / "local", dtype="float32", device="cpu")
    assert apart(offline_preferences, preferences(local, pairs)) < CLOSE
    spread = sorted(offline_preferences.values())
    assert spread[0] < 0.1
    assert spread[-1] > 0.9


@needs_vllm
def test_the_specials_are_those_of_the_models_tokenizer(offline: tuple[Judge, Backend]) -> None:
    assert {"<|user|>", "<|assistant|>", "<|end|>", "[INST]"} <= set(offline[1].specials)


@needs_vllm
def test_a_batch_is_the_same_to_the_bit_whatever_came_before(offline: tuple[Judge, Backend], pairs: list[Pair]) -> None:
    judge, backend = offline
    want = Choice(("1", "2"))
    before = by_id(backend.answer(calls_about(judge, pairs[:8], want)))
    other = by_id(backend.answer(calls_about(judge, pairs[4:12], want)))
    calls = calls_about(judge, pairs[:8], want)
    resumed = [replace(call, answered=number % 2 == 0) for number, call in enumerate(calls)]
    again = by_id(backend.answer(resumed))
    assert again.keys() == {call.id for call in resumed if not call.answered}, "what is answered has no reply"
    assert all(reply.logprobs == before[name].logprobs for name, reply in again.items())
    assert {reply.logprobs for reply in other.values()} != {reply.logprobs for reply in before.values()}
    for reply in before.values():
        assert reply.tokens_in > 20
        assert (reply.tokens_out, reply.attempts, reply.error) == (1, 1, None)
        assert reply.text in ("1", "2")


@needs_vllm
def test_an_unlikely_answer_has_its_exact_log_prob(offline: tuple[Judge, Backend], pairs: list[Pair]) -> None:
    judge, backend = offline
    vocabulary = sorted(AutoTokenizer.from_pretrained(MODEL).get_vocab())
    options = (
        "1",
        "2",
        *[token for token in vocabulary if token.isalpha() and token.isascii() and len(token) > 3][:40],
    )
    (reply,) = backend.answer(calls_about(judge, pairs[:1], Choice(options))[:1])
    assert reply.logprobs is not None
    assert len(reply.logprobs) == 42
    assert all(-60 < logprob < 0 for logprob in reply.logprobs)
    assert max(reply.logprobs[2:]) < min(reply.logprobs[:2])


@needs_vllm
def test_texts_keep_to_the_schema_and_follow_their_seeds(offline: tuple[Judge, Backend], pairs: list[Pair]) -> None:
    judge, backend = offline
    settings = judge.settings.model_copy(update={"mode": "pairwise_verdict"})
    want = MODES["pairwise_verdict"].want(settings, 2)
    assert isinstance(want, Text)
    texts = [by_id(backend.answer(calls_about(judge, pairs[:16], want, seed=seed))) for seed in (0, 0, 1000)]
    for reply in texts[0].values():
        assert parse_verdict(reply.text or "", ("1", "2")) is not None, reply.text
        assert reply.error is None
        assert reply.tokens_out <= 100
        assert reply.latency_s > 0
    once, same, other = ({name: reply.text for name, reply in found.items()} for found in texts)
    assert once == same
    assert once != other
    assert len(set(once.values())) > 2


@needs_vllm
def test_an_unreadable_text_is_asked_for_again_with_another_seed(
    offline: tuple[Judge, Backend], pairs: list[Pair]
) -> None:
    judge, backend = offline
    seen: list[str] = []

    def readable(text: str) -> bool:
        seen.append(text)
        return False

    (reply,) = backend.answer(calls_about(judge, pairs[:1], Text(20, readable))[:1])
    assert reply.attempts == 3
    assert reply.text is not None
    assert len(set(seen)) > 1
    (once,) = backend.answer(calls_about(judge, pairs[:1], Text(20, lambda text: True))[:1])
    assert once.text == seen[0]
    assert reply.tokens_in == 3 * once.tokens_in
    assert reply.tokens_out > once.tokens_out


@needs_vllm
def test_a_prompt_beyond_the_context_is_an_error_not_a_cut(offline: tuple[Judge, Backend]) -> None:
    judge, backend = offline
    subject = Subject("What?", ("word " * 600, "b"))
    long = Call("long", subject, judge.render(subject, "", ()), Choice(("1", "2")))
    subject = Subject("What?", ("a", "b"))
    short = Call("short", subject, judge.render(subject, "", ()), Choice(("1", "2")))
    replies = by_id(backend.answer([long, short]))
    assert replies["short"].error is None
    assert replies["long"].logprobs is None
    assert "the model's context holds 512" in (replies["long"].error or "")


@needs_vllm
def test_who_stops_listening_disturbs_nobody(offline: tuple[Judge, Backend], pairs: list[Pair]) -> None:
    judge, backend = offline
    wanted = by_id(backend.answer(calls_about(judge, pairs[:4], Choice(("1", "2")))))
    left = backend.answer(calls_about(judge, pairs, Text(300, lambda text: True)))
    next(left)
    left.close()
    again = by_id(backend.answer(calls_about(judge, pairs[:4], Choice(("1", "2")))))
    assert {name: reply.logprobs for name, reply in again.items()} == {
        name: reply.logprobs for name, reply in wanted.items()
    }


@needs_vllm
def test_a_killed_engine_is_an_error_that_may_pass(tmp_path: Path, logs: Path, pairs: list[Pair]) -> None:
    judge = offline_judge(tmp_path / "killed")
    others = set(psutil.Process().children())
    backend = open_backend(judge)
    (engine,) = set(psutil.Process().children()) - others
    want = Text(300, lambda text: True)
    # Many cells: the engine must be far from its end when it is killed, however fast the machine is.
    calls = [call for cell in range(30) for call in calls_about(judge, pairs, want, cell, 1000 * cell, f"{cell} ")]
    replies = backend.answer(calls)
    next(replies)
    engine.kill()
    (log,) = logs.glob("rlaif-vllm-*.log")
    with pytest.raises(
        TransientError, match=r"killed: the process of vLLM was killed, most often for want of memory"
    ) as e:
        list(replies)
    assert str(e.value).endswith(f"its log is {log}.")
    with pytest.raises(TransientError, match="was killed"):
        list(backend.answer(calls_about(judge, pairs[:1], Choice(("1", "2")))))
    backend.close()
    assert log.exists(), "who has to find the cause needs it"


@needs_vllm
def test_the_engine_does_not_outlive_its_parent(tmp_path: Path) -> None:
    offline_judge(tmp_path / "orphan")
    code = (
        "import sys; from judges.backends.base import open_backend; from judges.judge import load_judge;"
        "open_backend(load_judge(sys.argv[1]))"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    parent = psutil.Popen([sys.executable, "-c", code, str(tmp_path / "orphan")], env=environment)
    engine = wait_for(lambda: next(iter(parent.children()), None), 120)
    wait_for(lambda: engine.memory_info().rss > 200e6, 120)  # it is loading
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_for(lambda: not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE, 60)


@needs_vllm
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model": "broken"}, r"vLLM cannot load the model .*broken .*: check model"),
        ({"engine_args": {"max_nun_seqs": 4}}, "unexpected keyword argument 'max_nun_seqs'"),
        ({"sampling_args": {"top_p": 7}}, "top_p must be in"),
        ({"answers": ["first", "zweite"]}, "the answer .* is no single token of its model"),
        ({"start_timeout_s": 0.5}, r"was not ready after 0.5 s.*: raise start_timeout_s"),
    ],
)
def test_what_keeps_the_engine_from_starting_is_named(tmp_path: Path, settings: dict[str, Any], said: str) -> None:
    broken = tmp_path / "tiny" / "broken"
    shutil.copytree(MODEL, broken)
    (broken / "config.json").write_text('{"model_type": "llama", "architectures": ["NoSuchModel"]}')
    judge = offline_judge(tmp_path / "judge", **settings | ({"model": str(broken)} if "model" in settings else {}))
    with pytest.raises(RlaifError, match=said):
        open_backend(judge)


# The server.


def wait_for(found: Callable[[], Any], seconds: float) -> Any:
    end = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.1)
    return value


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of vLLM's own server with the tiny judge's model."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--model", str(MODEL), "--served-model-name", "judge", "--dtype", "float32", "--enforce-eager"]
    command += ["--load-format", "safetensors", "--generation-config", "vllm", "--no-enable-chunked-prefill"]
    command += ["--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}']
    settings = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, env={**os.environ, **settings}, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    address = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            return httpx.get(f"{address}/health").status_code == 200
        except httpx.TransportError:
            return False

    try:
        wait_for(ready, 400)
        yield f"{address}/v1"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def server_judge(folder: Path, address: str, **settings: Any) -> Judge:
    changed = {"base_url": address, "revision": "tiny-good", "constitution": None, "concurrency": 32}
    return write_judge(folder, CONFIGS / "judges" / "vllm-server", **changed, **settings)


@needs_vllm
def test_the_server_gives_the_preferences_of_the_offline_engine(
    server: str, offline_preferences: dict[tuple[str, str], float], pairs: list[Pair], tmp_path: Path
) -> None:
    served = preferences(server_judge(tmp_path / "served", server), pairs)
    assert apart(offline_preferences, served) < CLOSE


@needs_vllm
def test_the_servers_json_is_always_a_verdict(
    server: str, pairs: list[Pair], logit_bias: dict[str, float], tmp_path: Path
) -> None:
    settings = {"mode": "pairwise_verdict", "structured": True, "temperature": 1.0, "parse_attempts": 1}
    bias = {"extra_body": {"logit_bias": logit_bias}, "max_new_tokens": 100}
    judge = server_judge(tmp_path / "verdicts", server, **settings, **bias)
    votes = inquiry_about_pairs(judge, pairs).run(seed=0).to_pylist()
    assert len(votes) == 2 * len(pairs)
    assert {vote["status"] for vote in votes} <= {"scored", "tie"}
    assert all(vote["raw"].startswith('{"reasoning":"') for vote in votes)
    assert len({vote["raw"] for vote in votes}) > 2
