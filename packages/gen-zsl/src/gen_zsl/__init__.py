"""Generative and contrastive zero-shot learning."""
