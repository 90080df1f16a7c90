"""The JSON API under /api/v1: the same queue for programs, by bearer tokens with scopes."""
