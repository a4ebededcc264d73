"""Prints the tables of README.md and kernel_benchmarks.md."""

from docs.tables import KERNEL_TABLES, readme_answer_rows, speed_rows

for table in (readme_answer_rows, speed_rows, *KERNEL_TABLES):
    print("\n".join(table()), end="\n\n")
