"""Prints the tables of README.md and kernel_benchmarks.md."""

from docs.tables import KERNEL_TABLES, short_answer_rows, speed_rows

for table in (short_answer_rows, speed_rows, *KERNEL_TABLES):
    print("\n".join(table()), end="\n\n")
