"""Classifiers on stored features: of a training split, or of a few images a class."""
