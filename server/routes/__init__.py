"""The routes: each parses, calls, shapes."""
