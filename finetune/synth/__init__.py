"""Questions and answers made from a knowledge base's documents, as training data."""
