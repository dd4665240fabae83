"""Files that would run something if they were unpickled or imported, and a look at whether they did."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from tests.models.tiny import tiny_model
from tests.search.tiny_run import make_tokenizer, sentences

VOCABULARY = 320
CODE = """
import os
os.system("touch {sentinel}")
from transformers import LlamaConfig as Config, LlamaForCausalLM as Model, PreTrainedTokenizerFast as Words
"""


class Planted:
    """Makes traps that create ``sentinel`` when they go off."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.sentinel = folder, folder / "it-ran"

    @property
    def went_off(self) -> bool:
        return self.sentinel.exists()

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        """What unpickling one of these does."""
        return os.system, (f"touch {self.sentinel}",)

    def pickled(self) -> bytes:
        return pickle.dumps(self)

    def zipped(self) -> bytes:
        """As torch.save writes it."""
        import io

        import torch

        buffer = io.BytesIO()
        torch.save({"model.norm.weight": self}, buffer)
        return buffer.getvalue()

    def array(self) -> bytes:
        """A .npy file of pickled objects."""
        import io

        buffer = io.BytesIO()
        np.save(buffer, np.array([self, self], dtype=object), allow_pickle=True)
        return buffer.getvalue()

    def yaml(self) -> str:
        return f'!!python/object/apply:os.system ["touch {self.sentinel}"]'

    def code(self) -> str:
        return CODE.format(sentinel=self.sentinel)


def model_folder(folder: Path) -> Path:
    """A small Llama with its tokenizer, as Hugging Face saves it."""
    text = sentences(60)
    tiny_model("llama", vocab_size=VOCABULARY).save_pretrained(folder)
    make_tokenizer(text).save_pretrained(folder)
    (folder.parent / "corpus.txt").write_text(sentences(400))
    return folder


def change_json(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
