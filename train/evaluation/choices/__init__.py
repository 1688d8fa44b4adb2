"""Which of several captions an image shows."""
