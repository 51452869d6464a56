"""Placing a model in memory and lowering its trace to a program."""
