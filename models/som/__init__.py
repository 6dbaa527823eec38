"""The self-organizing map behind a codebook: its learning, arrangement, statistics and pictures."""
