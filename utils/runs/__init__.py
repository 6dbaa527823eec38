"""A run: the steps of a cascade, and the folders, checkpoints and attempts that they leave."""
