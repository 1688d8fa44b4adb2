"""What altered images and texts do to a model: planted triggers, misspelt names, order and size."""
