"""The processes that steps run in: starting them, their GPUs, several for one stage, and what ends those that hang."""
