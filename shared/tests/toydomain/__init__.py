"""A domain small enough to test the harness with: rows of numbers, a linear autoencoder."""
