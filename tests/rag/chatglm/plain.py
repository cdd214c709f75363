"""Opens exported folders with plain transformers; a separate program, which cannot import our code.

`python -I plain.py FOLDER` reads FOLDER/jobs.json, and writes results.json and logits.safetensors.
"""

import json
import sys
from pathlib import Path
from typing import Any

for ours in ("rag", "ingest", "finetune", "server"):
    sys.modules[ours] = None  # type: ignore[assignment]  # importing it fails

import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel  # noqa: E402


def answers(job: dict[str, Any]) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The results of the model in a folder, and the ids of its tokenizer."""
    model, info = AutoModelForCausalLM.from_pretrained(
        job["folder"], dtype=torch.float32, output_loading_info=True
    )
    tokenizer = AutoTokenizer.from_pretrained(job["folder"])
    found: dict[str, Any] = {
        "class": type(model).__module__,
        "left": {name: list(keys) for name, keys in info.items()},
        "eos": model.generation_config.eos_token_id,
        "texts": [tokenizer(text, split_special_tokens=True)["input_ids"] for text in job.get("texts", ())],
        "pairs": [tokenizer(*pair, split_special_tokens=True)["input_ids"] for pair in job.get("pairs", ())],
        "chats": [
            tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
            for chat in job.get("chats", ())
        ],
        "greedy": [greedy(model, ids) for ids in job.get("greedy", ())],
    }
    with torch.no_grad():
        logits = {str(i): model(torch.tensor(ids)).logits for i, ids in enumerate(job.get("ids", ()))}
    return found, logits


def greedy(model: PreTrainedModel, ids: list[list[int]]) -> list[list[int]]:
    model.generation_config.eos_token_id = None  # as for the golden numbers
    options = {"max_new_tokens": 24, "do_sample": False}
    prompt = torch.tensor(ids)
    return model.generate(prompt, attention_mask=torch.ones_like(prompt), **options).tolist()


def main(folder: Path) -> None:
    results, tensors = {}, {}
    for name, job in json.loads((folder / "jobs.json").read_text("utf-8")).items():
        results[name], logits = answers(job)
        tensors |= {f"{name}.{key}": value for key, value in logits.items()}
    assert not [name for name in sys.modules if name.startswith(("rag.", "ingest."))]
    (folder / "results.json").write_text(json.dumps(results), "utf-8")
    save_file(tensors, folder / "logits.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
