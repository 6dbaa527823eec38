"""The self-organizing map behind a codebook: how it learns, is put in order, measured and drawn."""
