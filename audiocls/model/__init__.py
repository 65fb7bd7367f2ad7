"""The backbone and its classification head."""
