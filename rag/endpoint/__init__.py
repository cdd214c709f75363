"""A language model on a server: any endpoint with OpenAI's API of chat completions.

vLLM, SGLang, llama.cpp's server and Ollama report the model's window and the tokens of a prompt; for
any other engine, users may configure them.
"""

from rag.endpoint.address import ADDRESS, Address, EndpointOptions, no_adapter

__all__ = ["ADDRESS", "Address", "EndpointOptions", "no_adapter"]
