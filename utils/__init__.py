"""What the models and scripts build on: files, the machine, data, runs, training, and how a token is drawn."""
