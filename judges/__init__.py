"""Judges: backends, panel, prompts, parsing of answers, and the aggregation of votes into preferences."""
