"""Ground floor: table schemas, atomic files, stage directories with manifests, content hashes, configuration."""
