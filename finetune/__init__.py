"""Data in alpaca's form or a knowledge base -> an adapter that `rag` answers with."""
