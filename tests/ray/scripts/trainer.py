"""A Hugging Face Trainer on a small BERT, as its author wrote it: it prints no JSON."""

from dataclasses import dataclass

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
)


@dataclass
class ModelArguments:
    hidden_size: int = 16


def examples(count: int, seed: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 20, (count, 8), generator=generator)
    return [{"input_ids": row, "labels": (row.sum() % 2).long()} for row in tokens]


model_arguments, arguments = HfArgumentParser(
    (ModelArguments, TrainingArguments)
).parse_args_into_dataclasses()
config = BertConfig(
    vocab_size=20,
    hidden_size=model_arguments.hidden_size,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=16,
)
trainer = Trainer(
    model=BertForSequenceClassification(config),
    args=arguments,
    train_dataset=examples(64, 0),
    eval_dataset=examples(32, 1),
)
trainer.train()
