"""BERT with LAMB: `BertForPreTraining` of transformers, its head at the masked tokens alone.

B sequences, one a row · L tokens of a row · P masked places
"""

from __future__ import annotations

from typing import Any

import transformers
from torch.nn import functional as F

from scripts.twins import training

NOTE = "a sequence a row, padded"


def as_measured(given: Any) -> Any:
    """Padded: no attention of PyTorch's knows several sequences in a row of a batch."""
    return given.replace(packed=False)


class Model(training.Model):
    def __init__(self, given: Any) -> None:
        super().__init__()
        config = transformers.BertConfig(
            vocab_size=given.vocab,
            hidden_size=given.width,
            num_hidden_layers=given.layers,
            num_attention_heads=given.heads,
            intermediate_size=given.hidden,
            hidden_act="gelu_new",
            hidden_dropout_prob=given.dropout,
            attention_probs_dropout_prob=given.dropout,
            max_position_embeddings=given.sequence_length,
            attn_implementation="sdpa",
        )
        self.net = transformers.BertForPreTraining(config)

    def layers_to_compile(self):
        return (*self.net.bert.encoder.layer, self.net.cls)

    def forward(self, batch):
        mask = (batch["sequences"] > 0).long()
        hidden, pooled = self.net.bert(batch["tokens"], mask, batch["types"], return_dict=False)
        at = batch["masked_positions"][..., None].expand(-1, -1, hidden.shape[-1])
        masked, following = self.net.cls(hidden.gather(1, at), pooled)
        each = F.cross_entropy(
            masked.flatten(0, 1).float(), batch["masked_ids"].flatten(), reduction="none"
        )
        weights = batch["masked_weights"].flatten()
        first = (each * weights).sum() / weights.sum()
        return first + F.cross_entropy(following.float(), batch["next_sentence"].flatten())


def optimizer(model: Model, given: Any) -> Any:
    return training.Lamb(model, given.weight_decay, (given.beta_1, given.beta_2), given.epsilon)
