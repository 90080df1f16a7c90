"""Aggregation of votes and verdicts into preferences and ratings: one method a file, one table of labels."""
