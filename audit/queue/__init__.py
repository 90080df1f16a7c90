"""The human audit queue's database layer: items, claims, verdicts and people, on SQLite or PostgreSQL. No web here."""
