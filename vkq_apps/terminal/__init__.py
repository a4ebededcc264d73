"""Options, messages and endings that the programs of this package share."""
