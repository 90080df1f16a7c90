"""Labels become preferences: what is kept, in which split, and how it is written, in TRL's plain format."""

from judges.preferences.make import MAX_MARGIN, REASONS, Preferences, make_preferences, margin, split_of

__all__ = ["MAX_MARGIN", "REASONS", "Preferences", "make_preferences", "margin", "split_of"]
