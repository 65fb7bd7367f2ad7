"""From files to labels and scores."""
