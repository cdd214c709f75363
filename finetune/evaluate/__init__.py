"""An adapter and its base on held-out questions."""
