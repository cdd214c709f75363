"""`rag serve`, `rag keys`, `rag trace` and `rag mcp`. Nothing heavy is imported before one runs."""
