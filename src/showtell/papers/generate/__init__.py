"""Generation: models that make images from text."""
