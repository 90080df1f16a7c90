"""Proximal policy optimisation of a policy against a reward model, within guardrails. `trainer.train` is the loop."""
