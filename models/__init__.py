"""The models: autoencoder, codebooks, transformer stages, and the cascade of all of them."""
