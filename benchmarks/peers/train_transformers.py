"""The Trainer of transformers on its Llama, a micro-batch of documents at a time, by its own collators.

    padded       a document a line, padded to the longest of the micro-batch (DataCollatorForSeq2Seq)
    flattened    documents one after the other without padding (DataCollatorWithFlattening)

The first label of a document is left out: nothing predicts it, and the Trainer would count it among the targets.
"""

import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader
from updates import Document, Variant, Watch, main, read_updates

IGNORED = -100
ROWS_AT_ONCE = {"cpu": 1, "cuda": 4}  # of a micro-batch, or as many documents as they have on average

Feature = dict[str, list[int]]


def micro_batches(
    updates: Sequence[list[list[Document]]], rows_at_once: int, is_mixed: bool
) -> Iterator[list[list[Feature]]]:
    """The micro-batches of every update, as many for each.

    Args:
        is_mixed: documents in a random order, as a Trainer's sampler has them, as many in each micro-batch; else those
            of the rows, as many tokens in each.
    """
    for update in updates:
        parts = [
            [document for row in update[k : k + rows_at_once] for document in row]
            for k in range(0, len(update), rows_at_once)
        ]
        if is_mixed:
            documents = [document for part in parts for document in part]
            random.Random(len(documents)).shuffle(documents)
            parts = [documents[k :: len(parts)] for k in range(len(parts))]
        yield [[{"input_ids": one, "labels": [IGNORED, *one[1:]]} for one in part] for part in parts]


def by(collator: Callable[[], Callable[[list[Feature]], Mapping[str, Any]]], is_mixed: bool) -> Variant:
    """Training with one of the collators."""

    def train(work: Path, settings: Mapping[str, Any], watch: Watch) -> None:
        from transformers import LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

        is_cuda = watch.device.type == "cuda"
        updates = list(micro_batches(list(read_updates(work)), ROWS_AT_ONCE[watch.device.type], is_mixed))
        collate = collator()
        places = 0

        def counted(features: list[list[Feature]]) -> Mapping[str, Any]:
            nonlocal places
            batch = collate(features[0])
            places += batch["input_ids"].numel()
            return batch

        class Hearing(TrainerCallback):
            def on_log(self, _args: Any, _state: Any, _control: Any, logs: Any = None, **_more: Any) -> None:
                if "loss" in logs:
                    watch.tell(logs["loss"])

        class InOrder(Trainer):
            def get_train_dataloader(self) -> DataLoader[Any]:
                parts = [part for update in updates for part in update]
                return DataLoader(parts, collate_fn=counted, pin_memory=is_cuda)

        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder,
                max_steps=len(updates),
                per_device_train_batch_size=1,  # micro-batch
                gradient_accumulation_steps=len(updates[0]),
                learning_rate=settings["learning_rate"],
                lr_scheduler_type="constant",
                optim="adamw_torch_fused",
                adam_beta1=settings["betas"][0],
                adam_beta2=settings["betas"][1],
                weight_decay=settings["weight_decay"],
                max_grad_norm=settings["grad_clip"],
                bf16=is_cuda,
                use_cpu=not is_cuda,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            )
            model = LlamaForCausalLM.from_pretrained(work / "weights", attn_implementation="sdpa")
            InOrder(model, arguments, train_dataset=updates, callbacks=[Hearing()]).train()
        tokens = sum(len(one["input_ids"]) for update in updates for part in update for one in part)
        watch.padding_share = 1 - tokens / places

    return train


def padding() -> Callable[[list[Feature]], Mapping[str, Any]]:
    """Pads to the longest, and masks the pads."""
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerFast

    return DataCollatorForSeq2Seq(PreTrainedTokenizerFast(tokenizer_object=Tokenizer(BPE()), pad_token="pad"))


def flattening() -> Callable[[list[Feature]], Mapping[str, Any]]:
    """Lays documents end to end; their positions begin anew."""
    from transformers import DataCollatorWithFlattening

    return DataCollatorWithFlattening()


VARIANTS = {"padded": by(padding, is_mixed=True), "flattened": by(flattening, is_mixed=False)}

if __name__ == "__main__":
    main("transformers", VARIANTS)
