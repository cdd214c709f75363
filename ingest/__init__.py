"""Documents in, a knowledge base out: parse, chunk, embed, store."""
