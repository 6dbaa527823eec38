"""What a run is: the steps of a cascade, the folders, checkpoints and attempts that they leave."""
