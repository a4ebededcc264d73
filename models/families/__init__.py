"""Model families, one folder or file each."""
