"""Trains the reader, which finds the answer in a chunk and says whether there is one."""
