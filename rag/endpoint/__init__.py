"""A language model that is served elsewhere: any endpoint that speaks as OpenAI's chat completions.

vLLM, SGLang, llama.cpp's server and Ollama are asked how large the model's window is and how many
tokens a prompt has; for any other the settings may say so.
"""

from rag.endpoint.address import Address, EndpointOptions, is_address, no_adapter

__all__ = ["Address", "EndpointOptions", "is_address", "no_adapter"]
