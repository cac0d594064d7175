"""Scoring and embedding as a stage of a Ray Data pipeline, where the data is on a cluster and its GPUs are.

    from seqmill.pipeline.ray_data import ScoreBatch

    documents = ray.data.read_parquet("s3://corpus/")
    settings = {"checkpoint": "run", "pooling": "mean", "device": "cuda", "dtype": "bfloat16"}
    scored = documents.map_batches(
        ScoreBatch, fn_constructor_kwargs=settings, concurrency=8, num_gpus=1, batch_format="pyarrow"
    )

Nothing here imports Ray: it is Ray that makes the object, once in each of its workers, and calls it.
"""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from seqmill.errors import UserError
from seqmill.pipeline.model_steps import find_model, open_scorer
from seqmill.pipeline.score_columns import ScoringConfig, encode_texts, score_columns
from seqmill.pipeline.settings import build


class ScoreBatch:
    """Adds the columns of `seqmill.pipeline.score_columns.score_fields` to tables of texts, or of ids.

    A row is scored as seqmill.pipeline.scoring does it; one whose text or ids are null has null scores.
    """

    def __init__(self, checkpoint: str, text: str = "text", ids: str = "input_ids", **settings: Any) -> None:
        """Load the model and its tokenizer.

        Args:
            checkpoint: a training folder, one of its checkpoints, or a folder of the HF hub; on a path that all
                machines of the cluster see.
            text: column of texts.
            ids: column of ids that the model's own tokenizer made; where a table has it, texts are not encoded. An id
                that the tokenizer's template puts before texts may be there or not.
            settings: of `ScoringConfig`, such as pooling="mean".

        Raises:
            UserError: the model cannot be loaded, or a setting is unknown or impossible.
        """
        self._text, self._ids, self._config = text, ids, build(ScoringConfig, settings)
        files, config = find_model(Path(checkpoint)), self._config
        self._scorer = open_scorer(files, config.device, config.dtype, config.threads)
        config.require_end(self._scorer.encoder, files.tokenizer)

    def __call__(self, table: pa.Table) -> pa.Table:
        """The table with its scores.

        Raises:
            UserError: it has neither texts nor ids, a column of scores is there already, or a row cannot be read.
        """
        names = table.column_names
        if self._ids in names:
            ids = table[self._ids].combine_chunks()
        elif self._text in names:
            ids = encode_texts(self._scorer.encoder, self._texts_of(table).fill_null(""), self._config.append_eos)
        else:
            raise UserError(
                f"a batch has the columns {', '.join(names)}, but neither {self._text!r} nor {self._ids!r}; name the "
                "column of texts with text=..., or that of ids with ids=..."
            )
        columns = score_columns(self._scorer, ids, self._sizes_of(table), self._config)
        for name, column in columns.items():
            if name in names:
                raise UserError(f"a batch has a column {name!r} already, where the scores would go; rename it first")
            table = table.append_column(name, column)
        return table

    def _texts_of(self, table: pa.Table) -> pa.Array:
        return table[self._text].combine_chunks()

    def _sizes_of(self, table: pa.Table) -> pa.Array:
        """Bytes of every text: as the table says, or counted, or unknown."""
        if "num_bytes" in table.column_names:
            return table["num_bytes"].combine_chunks()
        if self._text in table.column_names:
            return pc.binary_length(self._texts_of(table))
        return pa.nulls(len(table), pa.int64())
