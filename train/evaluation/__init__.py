"""Evaluation: suites of tasks over a model's two towers, equal for any number of processes."""
