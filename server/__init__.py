"""Knowledge bases over HTTP: the document QA API, its web page, and its MCP tools."""
