"""The human audit: which judged pairs people should see, and what their verdicts say about the judges."""
