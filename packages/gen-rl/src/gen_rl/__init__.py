"""Return-based contrastive representation learning for reinforcement learning."""
