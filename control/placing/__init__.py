"""The placement problem: its file format, its solvers and what checks them. Needs no controller and no database."""
