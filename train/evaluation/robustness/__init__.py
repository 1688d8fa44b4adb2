"""What altered images and texts do to a model: triggers, misspelt names, order, words."""
