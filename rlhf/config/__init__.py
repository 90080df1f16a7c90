"""Configuration of the training stages. Every field is documented where it is declared."""

from rlhf.config.common import Decoding, Device, Lora, Optimisation, Tracked
from rlhf.config.ppo import ConstraintTerm, KLControl, LengthTerm, Limit, Monitors, PPOConfig, Probe, RewardTerm
from rlhf.config.rollout import VLLM, EvaluateConfig, Generating, SampleConfig, SampleShards
from rlhf.config.supervised import DPOConfig, Ensemble, RewardConfig, SFTConfig

__all__ = [
    "VLLM",
    "ConstraintTerm",
    "DPOConfig",
    "Decoding",
    "Device",
    "Ensemble",
    "EvaluateConfig",
    "Generating",
    "KLControl",
    "LengthTerm",
    "Limit",
    "Lora",
    "Monitors",
    "Optimisation",
    "PPOConfig",
    "Probe",
    "RewardConfig",
    "RewardTerm",
    "SFTConfig",
    "SampleConfig",
    "SampleShards",
    "Tracked",
]
