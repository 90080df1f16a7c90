"""The web face of the audit queue: pages for people, a JSON API for programs."""
