"""ChatGLM 1, 2, 3 and GLM-4 on transformers; the import registers them with its Auto classes."""

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from rag.chatglm.configuration import ChatGLM2Config, Glm1Config
from rag.chatglm.modeling_chatglm import ChatGLM2ForCausalLM, Glm1ForCausalLM
from rag.chatglm.tokenization import ChatGLM1Tokenizer, ChatGLM4Tokenizer, ChatGLMTokenizer

AutoConfig.register("chatglm", Glm1Config, exist_ok=True)  # or ChatGLM2Config, by the keys
AutoModelForCausalLM.register(Glm1Config, Glm1ForCausalLM, exist_ok=True)
AutoModelForCausalLM.register(ChatGLM2Config, ChatGLM2ForCausalLM, exist_ok=True)
AutoTokenizer.register(Glm1Config, ChatGLM1Tokenizer, exist_ok=True)
# GLM-4-9B's tokenizer is found by its name; the last one also if a directory names none.
AutoTokenizer.register(ChatGLM2Config, ChatGLM4Tokenizer, exist_ok=True)
AutoTokenizer.register(ChatGLM2Config, ChatGLMTokenizer, exist_ok=True)
