"""What a Prefect server schedules: thin flows over the stages, and the deployments that `rlaif deploy` registers."""
