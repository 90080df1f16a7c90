"""A workspace in an S3-compatible bucket: objects, stage directories, a lease, and a mirror of unfinished work."""
