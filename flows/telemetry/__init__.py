"""What a run tells while it runs and after: progress, status, costs, logs, messages, Prometheus, the Prefect UI."""
