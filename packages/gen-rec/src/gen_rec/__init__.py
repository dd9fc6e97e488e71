"""Adversarial and contrastive models of sequential recommendation."""
