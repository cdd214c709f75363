"""The command `rag`; `app` assembles its commands."""
