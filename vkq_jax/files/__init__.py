"""Files of caches and tables: checked when they are read, whole when they are written."""
