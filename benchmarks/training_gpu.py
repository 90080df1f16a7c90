"""PPO and reward model of half a billion parameters on a GPU: `python benchmarks/training.py gpu`

A Qwen2 of the shape of Qwen2-0.5B (494M parameters, 152k words) with random weights, in bfloat16: prompts of 128
tokens, responses of up to 256 with mean 200. Printed are tokens a second, MFU of update and rollout, and the GPU's peak
memory; the same for TRL 1.12.0 where its environment exists (--environments, folder trl-1.12.0, with a torch that sees
the GPU).

MFU is the counted arithmetic (benchmarks/training_flops.py: no padding, nothing recomputed) over time, by the GPU's
dense bfloat16 rate according to its maker. Beside it stands the same by the rate of bare torch.matmul, measured there
and then.

Without a GPU it says so and ends with 2; --tiny runs the same path with a toy on the CPU, where figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

import torch  # noqa: E402

from benchmarks import peers, training_figures, training_flops, training_ppo_world  # noqa: E402
from benchmarks.training_figures import Line, show  # noqa: E402
from benchmarks.training_ppo import OURS, THEIRS, Side  # noqa: E402

MFU = 0.4
# Dense bfloat16 TFLOP/s in the makers' data sheets, by a part of the device's name; the longer name comes first.
PEAK = {
    "H200": 989.0, "H100 PCIe": 756.0, "H100 NVL": 835.0, "H100": 989.0, "B200": 2250.0, "A100": 312.0, "L40S": 362.0,
    "L40": 181.0, "L4": 121.0, "A10G": 70.0, "A10": 125.0, "A6000": 155.0, "RTX 4090": 165.0, "RTX 3090": 71.0,
}  # fmt: skip


def peak_rate(name: str) -> float | None:
    """Operations a second, or None for a device that is not in the table."""
    return next((rate * 1e12 for part, rate in PEAK.items() if part in name), None)


def job_of(options: argparse.Namespace, folder: Path, **more: Any) -> dict[str, Any]:
    compute = {"attention": options.attention, "compile": options.compile}
    return {
        "folder": str(folder),
        "turns": True,
        "updates": options.rounds + 2,
        "batch": options.batch,
        "micro_batch": options.trl_micro_batch,
        "batch_tokens": options.batch_tokens,
        "epochs": options.epochs,
        "response_tokens": options.world.response_tokens,
        "missing_stop_penalty": 1.0,
        "learning_rate": 1e-6,
        "kl_coefficient": 0.05,
        "value_coefficient": 0.1,
        "bf16": options.device == "cuda",
        "device": options.device,
        "seed": 0,
        "threads": 4,
        "clock": "wall",
        "critic": "separate",
        "compute": compute,
        **more,
    }


def ppo(name: str, interpreter: Path, script: Path, job: dict[str, Any], rounds: int) -> Side:
    """One side after another: a GPU's memory is not to be shared while its peak is measured."""
    with Side(interpreter, script, job) as side:
        for number in range(1 + rounds):
            shown = "  ".join(f"{key} {value:.4g}" for key, value in side.update().items())
            print(f"  {name:<22} {number or 'warm-up'}: {shown}", flush=True)
    return side


def reward(folder: Path, job: dict[str, Any], pairs: int) -> dict[str, float]:
    """One epoch of the reward model on random pairs, the first steps not counted; tokens a second and utilisation."""
    from rlhf.config import Device, Optimisation, RewardConfig
    from rlhf.devices import choose
    from rlhf.reward_model import load_reward_model
    from rlhf.reward_training import Pair, train_reward_model
    from rlhf.sequences import Sample

    compute = choose(Device(device=job["device"], threads=job["threads"], **job["compute"]))
    model = load_reward_model(str(folder / "reward"), compute, trained=True)
    shape = training_flops.Shape.of(model.model.config)
    generator = torch.Generator().manual_seed(0)
    prompt_tokens = len(json.loads((folder / "prompts.json").read_text())[0].split())

    def ids(least: int, most: int) -> list[int]:
        length = int(torch.randint(least, most + 1, (), generator=generator))
        return torch.randint(3, shape.vocabulary, (length,), generator=generator).tolist()

    def pair() -> Pair:
        prompt, most = ids(prompt_tokens, prompt_tokens), job["response_tokens"]
        return Pair(Sample(prompt, ids(most // 2, most)), Sample(prompt, ids(most // 2, most)), 1.0, 1.0)

    # Both responses carry the prompt here: with it shared the same pairs need less arithmetic, and the MFU says less.
    config = RewardConfig(
        epochs=1,
        batch_size=min(64, pairs),
        share_prefix=False,
        optimisation=Optimisation(learning_rate=1e-5, batch_tokens=job["batch_tokens"]),
    )
    train_reward_model(model, [pair() for _ in range(config.batch_size)], [], config, 0, compute)
    data = [pair() for _ in range(pairs)]
    rate = training_flops.matmul_rate(shape, job["batch_tokens"], compute.device, compute.dtype)
    start = time.monotonic()
    train_reward_model(model, data, [], config, 0, compute)
    seconds = time.monotonic() - start
    lengths = [sample.length for pair in data for sample in (pair.chosen, pair.rejected)]
    work = 3 * sum(shape.trunk(length, training_flops.causal_pairs(length)) for length in lengths)
    return {
        "seconds": seconds,
        "tokens_per_s": sum(lengths) / seconds,
        "flop_per_s": work / seconds,
        "utilisation": work / seconds / rate,
        "peak_mb": training_figures.peak_mb(job["device"]),
    }


def report(sides: dict[str, Side], scored: dict[str, float], peak: float | None, job: dict[str, Any]) -> list[Line]:
    lines = []
    for name, side in sides.items():
        if "update_seconds" not in side.rows[0]:
            continue
        seconds, update = side.median("seconds"), side.median("update_seconds")
        tokens = side.median("tokens")
        print(f"\n{name}: {tokens * job['epochs'] / update:,.0f} tokens/s in the update, ", end="")
        print(f"{tokens / (seconds - update):,.0f} in the rollout, {tokens / seconds:,.0f} over all; ", end="")
        print(f"peak {side.rows[-1]['peak_mb']:,.0f} MB")
        rates = {"update": side.median("gflop") * 1e9 / update}
        rates["rollout"] = side.median("rollout_gflop") * 1e9 / (seconds - update)
        measured = side.median("matmul_gflop_per_s") * 1e9
        for phase, rate in rates.items():
            print(f"  {phase}: {rate / 1e12:.1f} TFLOP/s, {rate / measured:.1%} of torch.matmul's", end="")
            print("" if peak is None else f", MFU {rate / peak:.1%}")
        share = rates["update"] / (measured if peak is None else peak)
        lines.append(
            Line(f"MFU of the update, {name}", rates["update"] / 1e12, (peak or measured) / 1e12, share, ">=", MFU)
        )
    print(
        f"\nreward model: {scored['tokens_per_s']:,.0f} tokens/s, {scored['utilisation']:.1%} of torch.matmul's", end=""
    )
    print("" if peak is None else f", MFU {scored['flop_per_s'] / peak:.1%}", end="")
    print(f"; peak {scored['peak_mb']:,.0f} MB")
    if "TRL 1.12.0" in sides:
        ours, theirs = (sides[name] for name in ("separate critic", "TRL 1.12.0"))
        values = (ours.median("seconds"), theirs.median("seconds"))
        lines.append(Line("s an update, TRL / ours", *values, values[1] / values[0], ">=", 2.0))
        held = (ours.rows[-1]["peak_mb"], theirs.rows[-1]["peak_mb"])
        lines.append(Line("peak MB, ours / TRL", *held, held[0] / held[1], "<=", 0.6))
    return lines


def sees_gpu(interpreter: Path) -> bool:
    check = "import torch, trl; raise SystemExit(not torch.cuda.is_available())"
    return interpreter.exists() and not subprocess.run([interpreter, "-c", check], capture_output=True).returncode


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    peers.add_option(parser)
    parser.add_argument("--tiny", action="store_true", help="a toy on the CPU, to try the script out")
    parser.add_argument("--rounds", type=int, default=3, help="updates that count")
    parser.add_argument("--batch", type=int, default=256, help="responses an update")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch-tokens", type=int, default=32768, help="our tokens of one forward pass")
    parser.add_argument("--trl-micro-batch", type=int, default=16, help="TRL's responses of one forward pass")
    parser.add_argument("--pairs", type=int, default=1024, help="pairs for the reward model")
    parser.add_argument("--attention", default="sdpa", choices=["sdpa", "flash_attention_2"])
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args(arguments)
    if not options.tiny and not torch.cuda.is_available():
        print("There is no GPU here: nothing was measured (--tiny tries the script out on the CPU).", file=sys.stderr)
        return 2
    options.device = "cpu" if options.tiny else "cuda"
    options.world = training_ppo_world.TINY if options.tiny else training_ppo_world.HALF_BILLION
    if options.tiny:
        options.batch, options.rounds, options.batch_tokens, options.pairs = 8, 1, 256, 16
    name = platform.machine() if options.tiny else torch.cuda.get_device_name()
    peak = None if options.tiny else peak_rate(name)
    print(f"{name}, torch {torch.__version__}, {options.attention}" + (", compiled" if options.compile else ""))
    if peak is None:
        print("its rate is not in the table: MFU is by the measured rate of torch.matmul")
    sides = {}
    with tempfile.TemporaryDirectory() as folder:
        # The mean of min(Geometric(0.002), 256) is 200 tokens.
        world = training_ppo_world.make(Path(folder), 0.002, options.batch * (options.rounds + 2), options.world)
        job = job_of(options, world)
        for critic in ("separate", "shared"):
            what = f"{critic} critic"
            sides[what] = ppo(what, Path(sys.executable), OURS, {**job, "critic": critic}, options.rounds)
        theirs = options.environments.expanduser() / "trl-1.12.0" / "bin" / "python"
        if options.tiny or sees_gpu(theirs):
            if theirs.exists():
                sides["TRL 1.12.0"] = ppo("TRL 1.12.0", theirs, THEIRS, job, options.rounds)
        else:
            print(f"TRL 1.12.0 is left out: {theirs} is missing or sees no GPU")
        scored = reward(world, job, options.pairs)
    met = show(report(sides, scored, peak, job))
    return 0 if met or options.tiny else 1


if __name__ == "__main__":
    raise SystemExit(main())
