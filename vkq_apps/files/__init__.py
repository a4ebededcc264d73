"""Files that commands read and write: results, their origin, texts."""
