"""Prefect flows, tasks, deployments and the command line. The only package that imports prefect."""
