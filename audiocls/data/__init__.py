"""From a name on the command line to a padded batch."""
