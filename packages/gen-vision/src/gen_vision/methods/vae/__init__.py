"""Variational auto-encoders and what stands on them."""
