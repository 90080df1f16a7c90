"""One module a stage: it reads tables, calls the rooms below, writes tables. None of them knows prefect."""
