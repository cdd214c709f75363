"""A question in, a cited answer out: retrieve, refuse or read, cite."""
