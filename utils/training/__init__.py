"""The training loop, and what it trains: tasks, optimizers, metrics, checkpoints."""
