"""Sampling, supervised fine-tuning, reward model, PPO and evaluation."""
