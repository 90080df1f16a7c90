"""Speed and quality of the training core, beside peers: `python benchmarks/training.py PART [options]`

    ppo      an update of PPO against TRL 1.12.0: seconds, peak memory, share of the machine's matmul rate
    quality  reward at equal KL, against TRL 1.12.0
    reward   the reward model against TRL 1.16's RewardTrainer
    sft      supervised fine-tuning against TRL 1.16's SFTTrainer
    gpu      PPO and reward model of half a billion parameters on a GPU: tokens a second and MFU

Every part prints both sides of each ratio beside the target; PART --help says how, and what can be changed. Peers run
in environments of their own, made on first use.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PARTS = {
    "ppo": "training_ppo.py",
    "quality": "training_quality.py",
    "reward": "training_reward.py",
    "sft": "training_sft.py",
    "gpu": "training_gpu.py",
}


def main() -> int:
    if len(sys.argv) < 2 or sys.argv[1] not in PARTS:
        print(__doc__)
        return 0 if sys.argv[1:] in (["-h"], ["--help"]) else 2
    script = Path(__file__).resolve().with_name(PARTS[sys.argv[1]])
    return subprocess.run([sys.executable, str(script), *sys.argv[2:]], check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())
