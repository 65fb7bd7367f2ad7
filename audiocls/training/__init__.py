"""What happens between a batch and the best checkpoint."""
