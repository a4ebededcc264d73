"""Writes the tables of README.md and of the pages of docs/ anew, from the files under results/."""

from docs.tables.pages import write

print("changed:", ", ".join(write()) or "nothing")
