"""ChatGLM 1, 2, 3 and GLM-4 on transformers: importing this registers them with its Auto classes."""

from transformers import AutoConfig, AutoModelForCausalLM

from rag.chatglm.configuration import ChatGLM2Config, Glm1Config
from rag.chatglm.modeling_glm2 import ChatGLM2ForCausalLM

AutoConfig.register("chatglm", Glm1Config, exist_ok=True)  # gives ChatGLM2Config by the keys
AutoModelForCausalLM.register(ChatGLM2Config, ChatGLM2ForCausalLM, exist_ok=True)
