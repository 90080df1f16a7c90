"""Policies beyond their round: which is the champion, what each comes from, and how one is handed to others."""
