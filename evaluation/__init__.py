"""How good a run is: distances, bits, novelty."""
