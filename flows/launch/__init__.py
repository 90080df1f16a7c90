"""How a round is begun, tried without running, made again from a stage on, and resumed once people have answered."""
