"""Rows of tokens and a model -> an adapter: layout, loss, steps, checkpoints, what is written."""
