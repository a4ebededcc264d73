"""Prints the tables of README.md and kernel_benchmarks.md."""

from docs.tables import KERNEL_TABLES, kernel_table, short_answer_rows, speed_rows

for table in (short_answer_rows, speed_rows, kernel_table, *KERNEL_TABLES):
    print("\n".join(table()), end="\n\n")
