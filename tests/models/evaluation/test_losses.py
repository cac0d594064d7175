"""Bits per byte of held-out documents: every token of every document is charged once, whatever the batches."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from seqmill.compress import code_lengths
from seqmill.compress.dictionary import Dictionary
from seqmill.errors import UserError
from seqmill.manifest import OutputFile, write_manifest
from seqmill.models import Model, ModelConfig, score
from seqmill.models.attention import Segments
from seqmill.models.evaluation.held_out import EvaluationConfig, HeldOut, Windows
from seqmill.models.evaluation.losses import evaluate
from seqmill.models.evaluation.source_loss import SourceLoss, gather_losses, merge, total
from seqmill.models.huggingface import export_huggingface
from seqmill.packing import TokenStore
from seqmill.storage import write_arrow
from seqmill.tokenizers_ext import Encoder, append_id, load
from seqmill.tokenizers_ext.artifact import save_byte
from seqmill.tokenizers_ext.byte_level import ByteEncoder
from seqmill.tokenizers_ext.equal_info import EqualInfoEncoder

Documents = Sequence[Sequence[int]]
SOURCES = ("a", "b", "c")


def table_of(documents: Documents, sources: Sequence[str], num_bytes: Sequence[int]) -> pa.Table:
    return pa.table(
        {
            "doc_id": pa.array(range(7, 7 + len(documents)), pa.uint64()),
            "input_ids": pa.array([list(map(int, document)) for document in documents], pa.list_(pa.uint16())),
            "num_bytes": pa.array(num_bytes, pa.uint32()),
            "source": pa.array(sources, pa.string()),
        }
    )


def held_out_of(texts: Documents, **config: Any) -> HeldOut:
    """Documents of three sources in turn, three bytes a token."""
    sources = [SOURCES[number % 3] for number in range(len(texts))]
    sizes = [3 * len(text) for text in texts]
    store = TokenStore([table_of(texts, sources, sizes)], {"vocab_size": 100, "sources": list(SOURCES)})
    return HeldOut(store, np.array(sizes), EvaluationConfig(**config))


def drawn(lengths: Sequence[int], seed: int = 0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 100, length) for length in lengths]


@pytest.fixture(scope="module")
def documents() -> list[np.ndarray]:
    """One without a token, one of one token, one that fills windows to the last place, and long ones."""
    return drawn([0, 1, 2, 9, 17, 33, 5, 50, 16])


@torch.no_grad()
def slowly(model: Model, documents: Documents, context: int, stride: int) -> dict[str, float]:
    """Nats by source: token by token, each from a forward pass over what its window holds before it."""
    nats = dict.fromkeys(SOURCES, 0.0)
    for number, document in enumerate(documents):
        for target in range(1, len(document)):
            window = 0
            while window * stride + context < target:  # the first window that reads the token before
                window += 1
            before = torch.tensor(np.asarray(document[window * stride : target]))
            segments = Segments.of([len(before)])
            logits = model.logits(model(before, segments.positions(), segments)).double()[-1].tolist()
            normaliser = math.log(math.fsum(math.exp(logit - max(logits)) for logit in logits)) + max(logits)
            nats[SOURCES[number % 3]] += normaliser - logits[int(document[target])]
    return nats


@pytest.mark.parametrize(("context", "stride"), [(16, 4), (1, 1), (1000, 1000), (32, None)])
def test_the_sums_are_those_of_single_tokens_predicted_one_at_a_time(
    model: Model, documents: list[np.ndarray], context: int, stride: int | None
) -> None:
    found = evaluate(model, held_out_of(documents, context=context, stride=stride, batch_tokens=50))
    expected = slowly(model, documents, context, stride or context // 2)
    for name, loss in found.items():
        own = [document for number, document in enumerate(documents) if SOURCES[number % 3] == name]
        assert loss.nats == pytest.approx(expected[name], rel=1e-6)
        assert (loss.documents, loss.tokens) == (len(own), sum(map(len, own)))
        assert loss.targets == sum(len(document) - 1 for document in own if len(document))
        assert loss.bytes == 3 * loss.tokens
        assert loss.first_nats == pytest.approx(math.log(100) * sum(len(document) > 0 for document in own))
        bits = (expected[name] + loss.first_nats) / math.log(2)
        assert loss.bits_per_byte == pytest.approx(bits / loss.bytes, rel=1e-6)
        assert loss.loss == pytest.approx(expected[name] / loss.targets, rel=1e-6)


def test_bits_per_byte_are_those_of_a_code_for_whole_documents(model: Model, documents: list[np.ndarray]) -> None:
    """As compress.code_lengths has them from one loss a token, where no document is longer than the context."""
    whole = [document for document in documents if len(document)]
    found = evaluate(model, held_out_of(whole, context=100))
    nats = [-losses for losses in score(model, [document.tolist() for document in whole])]
    sizes = [np.full(len(document), 3) for document in whole]
    lengths = code_lengths(nats, sizes, [SOURCES[number % 3] for number in range(len(whole))])
    for name, expected in lengths.items():
        assert found[name].bits_per_byte == pytest.approx(expected.bits_per_byte_of_all(100), rel=1e-6)


def test_transformers_has_the_same_loss_on_the_same_documents(model: Model, tmp_path: Path) -> None:
    export_huggingface(model, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    documents = drawn([5, 60, 33, 2])
    nats = 0.0
    with torch.no_grad():
        for document in documents:
            ids = torch.tensor(document)[None]
            nats += theirs(ids, labels=ids).loss.item() * (len(document) - 1)
    found = total(evaluate(model, held_out_of(documents)))
    assert found.nats == pytest.approx(nats, rel=1e-5)
    assert found.targets == 4 + 59 + 32 + 1


@pytest.mark.parametrize("batch_tokens", [1, 20, 77, 10**6])
def test_the_size_of_a_batch_does_not_matter(model: Model, documents: list[np.ndarray], batch_tokens: int) -> None:
    one, other = (
        evaluate(model, held_out_of(documents, context=16, stride=8, batch_tokens=size)) for size in (40, batch_tokens)
    )
    for name in SOURCES:
        assert other[name].nats == pytest.approx(one[name].nats, rel=1e-6)


@pytest.mark.parametrize("world_size", [3, 20])
def test_the_shares_of_ranks_add_up_after_as_many_passes_on_each(
    model: Model, documents: list[np.ndarray], world_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out = held_out_of(documents, context=16, stride=8, batch_tokens=40)
    alone = evaluate(model, held_out)
    forward, passes = Model.forward, []

    def counted(self: Model, *arguments: Any) -> torch.Tensor:
        passes.append(1)
        return forward(self, *arguments)

    monkeypatch.setattr(Model, "forward", counted)
    shares, made = [], []
    for rank in range(world_size):
        passes.clear()
        shares.append(evaluate(model, held_out, rank=rank, world_size=world_size))
        made.append(len(passes))
    assert len(set(made)) == 1
    together = merge(*shares)
    for name in SOURCES:
        assert together[name].nats == pytest.approx(alone[name].nats, rel=1e-6)
        assert together[name].documents == alone[name].documents
        assert together[name].first_nats == alone[name].first_nats


@given(st.lists(st.integers(0, 70), max_size=8), st.integers(1, 20), st.integers(1, 20), st.integers(1, 90))
@settings(max_examples=60, deadline=None)
def test_every_token_but_the_first_is_charged_in_one_window(
    lengths: list[int], context: int, stride: int, most: int
) -> None:
    stride = min(stride, context)
    windows = Windows.of(np.array(lengths, np.int64), context, stride)
    charged = [(d, target) for d, length in enumerate(lengths) for target in range(1, length)]
    found, seen = [], []
    for document, start, stop, skip in zip(*vars(windows).values(), strict=True):
        assert 0 < stop - start <= context
        for place in range(start + skip, stop):
            found.append((document, place + 1))
            seen.append(place + 1 - start >= min(place + 1, context - stride + 1))
    assert sorted(found) == charged
    assert all(seen)  # what stands behind the first window sees more than the overlap
    batches = windows.batches(most)
    assert [n for batch in batches for n in range(batch.start, batch.stop)] == list(range(len(windows.start)))
    sizes = windows.stop - windows.start
    assert all(sizes[batch].sum() <= most or batch.stop - batch.start == 1 for batch in batches)


def test_fewer_documents_are_the_first_of_more_and_bytes_are_a_limit(documents: list[np.ndarray]) -> None:
    everything = held_out_of(documents)
    assert sorted(everything.items) == list(range(9))
    assert everything.items.tolist() != sorted(everything.items)
    assert held_out_of(documents, seed=1).items.tolist() != everything.items.tolist()
    assert held_out_of(documents, documents=5).items.tolist() == everything.items[:5].tolist()
    for limit in (1, 60, 200, 10**9):
        some = held_out_of(documents, max_bytes=limit)
        count = len(some.items)
        assert some.items.tolist() == everything.items[:count].tolist()
        assert count == 1 or some.num_bytes.sum() <= limit
        assert count == 9 or everything.num_bytes[: count + 1].sum() > limit


def test_the_same_documents_are_taken_whatever_the_tokenizer(documents: list[np.ndarray]) -> None:
    """They are chosen by id and bytes of text; here as ids of twice as many tokens."""
    sizes = np.array([3 * len(document) for document in documents])
    doubled = [np.repeat(document, 2) for document in documents]
    table = table_of(doubled, ["a"] * 9, sizes.tolist())
    other = HeldOut(TokenStore([table], {"vocab_size": 300, "sources": ["a"]}), sizes, EvaluationConfig(max_bytes=200))
    assert other.items.tolist() == held_out_of(documents, max_bytes=200).items.tolist()


def test_an_id_that_stands_before_every_document_costs_nothing() -> None:
    held_out = held_out_of([[9, 1, 2], [9], [3, 9], []], start_id=9)
    assert [loss.first_nats for loss in held_out.counts().values()] == [0.0, 0.0, math.log(100)]


def test_a_source_without_documents_has_no_figures(model: Model) -> None:
    found = evaluate(model, held_out_of([[1, 2, 3]]))
    assert found["b"] == SourceLoss()
    assert (found["b"].loss, found["b"].bits_per_byte) == (None, None)
    assert found["a"].documents == 1


def test_documents_without_any_target_need_no_forward_pass(model: Model) -> None:
    found = total(evaluate(model, held_out_of([[5], [], [6]])))
    assert (found.tokens, found.targets, found.nats) == (2, 0, 0.0)
    assert found.bits_per_byte == pytest.approx(2 * math.log2(100) / 6)


def test_the_model_is_as_it_was_before(model: Model, documents: list[np.ndarray]) -> None:
    model.train()
    evaluate(model, held_out_of(documents))
    assert model.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_half_precision_is_near(model: Model, documents: list[np.ndarray]) -> None:
    held_out = held_out_of(documents)
    exact, rough = (total(evaluate(model, held_out, dtype=dtype)) for dtype in (torch.float32, torch.bfloat16))
    assert rough.nats != exact.nats
    assert rough.nats == pytest.approx(exact.nats, rel=0.02)
    weights = total(evaluate(model.to(torch.bfloat16), held_out))
    assert weights.nats == pytest.approx(exact.nats, rel=0.02)


TEXTS = ["the cat sat", "naïve café 🙂", "", "e\u0301 and x" * 30, "z"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tokens folder of bytes, as `seqmill tokenize` writes it: ends of documents are ids."""
    save_byte(tmp_path / "tokenizer")
    encoder = load(tmp_path / "tokenizer")
    ids = [[*text.encode(), encoder.special_ids["eos"]] for text in TEXTS]
    table = table_of(ids, ["web", "web", "web", "books", "web"], [len(text.encode()) for text in TEXTS])
    rows = write_arrow(tmp_path / "part-00000.arrow", table.schema, table.to_batches())
    made = {"kind": "byte", "fingerprint": encoder.fingerprint, "special_ids": dict(encoder.special_ids)}
    entries: dict[str, Any] = {"vocab_size": encoder.vocab_size, "sources": ["books", "web"], "tokenizer": made}
    write_manifest(tmp_path, "tokens", [OutputFile.of(tmp_path, "part-00000.arrow", rows)], **entries)
    return tmp_path


@pytest.fixture
def byte_model(config: ModelConfig) -> Model:
    return Model(ModelConfig(**{**config.to_json(), "vocab_size": 258}), seed=1)


def test_a_folder_of_tokens_is_evaluated_by_the_bytes_of_its_texts(folder: Path, byte_model: Model) -> None:
    """A head of zeros gives every id log2(258) bits; the end of each document is one more id than it has bytes."""
    with torch.no_grad():
        byte_model.head_weight.zero_()
    found = evaluate(byte_model, HeldOut.open(folder, EvaluationConfig(context=64)))
    assert list(found) == ["books", "web"]
    for name, texts in (("books", TEXTS[3:4]), ("web", [*TEXTS[:3], TEXTS[4]])):
        size = sum(len(text.encode()) for text in texts)
        ids = size + len(texts)
        assert (found[name].documents, found[name].bytes, found[name].tokens) == (len(texts), size, ids)
        assert found[name].bits_per_byte == pytest.approx(math.log2(258) * ids / size, rel=1e-6)


SINGLES = [bytes([byte]) for byte in range(256)]
ENGLISH, FRENCH = (Dictionary.from_strings([*SINGLES, *more]) for more in ((b"the ", b"cat"), (b"na", "ïve".encode())))


@pytest.mark.parametrize(
    "encoder",
    [ByteEncoder(), EqualInfoEncoder([ENGLISH]), EqualInfoEncoder([ENGLISH, FRENCH])],
    ids=["bytes", "windows", "windows of two tables"],
)
def test_bytes_are_those_of_the_text_whatever_the_tokenizer(encoder: Encoder, config: ModelConfig) -> None:
    """A model that knows nothing needs log2(ids) bits for each token: marks of tables and ends of documents too."""
    lists = append_id(encoder.encode(pa.array(TEXTS)), encoder.special_ids["eos"])
    sizes = [len(text.encode()) for text in TEXTS]
    table = table_of(lists.to_pylist(), ["web"] * len(TEXTS), sizes)
    store = TokenStore([table], {"vocab_size": encoder.vocab_size, "sources": ["web"]})
    model = Model(ModelConfig(**{**config.to_json(), "vocab_size": encoder.vocab_size}), seed=1)
    with torch.no_grad():
        model.head_weight.zero_()
    found = evaluate(model, HeldOut(store, np.array(sizes), EvaluationConfig(context=32)))["web"]
    bits = math.log2(encoder.vocab_size) * len(lists.flatten())
    assert found.bits_per_byte == pytest.approx(bits / sum(sizes), rel=1e-6)


def test_beginnings_are_the_first_tokens_of_documents_that_go_on(folder: Path) -> None:
    held_out = HeldOut.open(folder, EvaluationConfig())
    found = [bytes(ids).decode(errors="replace") for ids in held_out.beginnings(10, 4)]
    assert sorted(found) == sorted(["the ", "naï", "e\u0301 "])
    assert held_out.beginnings(0, 4) == held_out.beginnings(3, 1000) == []


def test_what_cannot_be_evaluated_is_refused(folder: Path, model: Model, byte_model: Model) -> None:
    with pytest.raises(UserError, match=r"vocabulary of 258 ids, the model one of 100"):
        evaluate(model, HeldOut.open(folder, EvaluationConfig()))
    with pytest.raises(UserError, match="is not the one of the training data"):
        HeldOut.open(folder, EvaluationConfig(), tokenizer="0" * 64)
    HeldOut.open(folder, EvaluationConfig(), tokenizer=load(folder / "tokenizer").fingerprint)
    with torch.no_grad():
        byte_model.norm.weight.fill_(torch.nan)
    with pytest.raises(UserError, match="held-out documents of books is no finite number"):
        evaluate(byte_model, HeldOut.open(folder, EvaluationConfig()))
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "kind": "packed"}))
    with pytest.raises(UserError, match=r"holds packed.*name the tokens folder"):
        HeldOut.open(folder, EvaluationConfig())
    with pytest.raises(UserError, match="no documents to evaluate on"):
        held_out_of([])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"documents": 0}, "documents = 0: must be 1 or more"),
        ({"max_bytes": 0}, "max_bytes = 0"),
        ({"context": 0}, "context = 0"),
        ({"context": 8, "stride": 9}, "stride = 9 is more than context = 8"),
        ({"batch_tokens": 0}, "batch_tokens = 0"),
    ],
)
def test_an_impossible_setting_is_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        EvaluationConfig(**settings)


def _gather(rank: int, make: Callable[[int], dict[str, SourceLoss]], store: str, out: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    try:
        found = gather_losses(make(rank), torch.device("cpu"))
        Path(f"{out}-{rank}").write_text(repr(found))
    finally:
        torch.distributed.destroy_process_group()


def _share(rank: int) -> dict[str, SourceLoss]:
    return {"a": SourceLoss(2**40 + rank, 5, 4, 3, 0.1, 0.2), "b": SourceLoss(nats=1e9 * rank)}


def test_ranks_tell_each_other_their_shares(tmp_path: Path) -> None:
    torch.multiprocessing.start_processes(  # forked: a new process would import for seconds
        _gather, (_share, str(tmp_path / "store"), str(tmp_path / "out")), nprocs=2, start_method="fork"
    )
    expected = merge(_share(0), _share(1))
    assert expected["a"].documents == 2**41 + 1
    assert [Path(f"{tmp_path}/out-{rank}").read_text() for rank in (0, 1)] == [repr(expected)] * 2
