import json
from pathlib import Path

import pyarrow as pa
import pytest
import transformers

from seqmill.errors import UserError
from seqmill.tokenizers_ext import copy_artifact, load, save_byte, save_subword


def test_a_saved_tokenizer_loads_with_the_same_ids(tmp_path: Path, tokenizer_json: bytes) -> None:
    saved = save_subword(tmp_path / "tokenizer", tokenizer_json, {"why": "test"})
    loaded = load(tmp_path / "tokenizer")
    texts = pa.array(["the quick fox", "Würde"])
    assert loaded.encode(texts).equals(saved.encode(texts))
    assert loaded.fingerprint == saved.fingerprint
    assert loaded.special_ids == {"eos": 0}


def test_transformers_loads_the_same_tokenizer(tmp_path: Path, tokenizer_json: bytes) -> None:
    encoder = save_subword(tmp_path, tokenizer_json, {})
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    text = "The quick brown fox, encode(texts)"
    assert encoder.encode(pa.array([text])).to_pylist()[0] == theirs.encode(text, add_special_tokens=False)


def test_the_byte_tokenizer_is_saved_and_loaded(tmp_path: Path) -> None:
    save_byte(tmp_path)
    assert load(tmp_path).encode(pa.array(["hi"])).to_pylist() == [[104, 105]]


def test_a_bare_tokenizer_json_loads_as_file_and_as_folder(tmp_path: Path, tokenizer_json: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(tokenizer_json)
    assert load(tmp_path).fingerprint == load(tmp_path / "tokenizer.json").fingerprint


def test_copies_are_whole_artifacts(tmp_path: Path, tokenizer_json: bytes) -> None:
    save_subword(tmp_path / "a", tokenizer_json, {})
    copy_artifact(tmp_path / "a", tmp_path / "b")
    assert {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()
    }
    copy_artifact(tmp_path / "a" / "tokenizer.json", tmp_path / "c")
    assert load(tmp_path / "c").fingerprint == load(tmp_path / "a").fingerprint


def test_a_changed_tokenizer_file_is_refused(tmp_path: Path, tokenizer_json: bytes) -> None:
    save_subword(tmp_path, tokenizer_json, {})
    (tmp_path / "tokenizer.json").write_bytes(tokenizer_json.replace(b'"the"', b'"teh"') + b" ")
    with pytest.raises(UserError, match="records sha256"):
        load(tmp_path)


def test_a_missing_file_of_an_artifact_is_refused(tmp_path: Path, tokenizer_json: bytes) -> None:
    save_subword(tmp_path, tokenizer_json, {})
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="found nothing"):
        load(tmp_path)


def test_a_path_without_a_tokenizer_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="seqmill tokenizer train"):
        load(tmp_path / "nowhere")


def test_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    save_byte(tmp_path)
    described = json.loads((tmp_path / "seqmill.json").read_text())
    (tmp_path / "seqmill.json").write_text(json.dumps({**described, "kind": "telepathic"}))
    with pytest.raises(UserError, match="unknown tokenizer kind 'telepathic'"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["kind", "special_ids", "settings", "sha256"])
def test_a_description_without_an_entry_is_refused(tmp_path: Path, name: str) -> None:
    save_byte(tmp_path)
    described = json.loads((tmp_path / "seqmill.json").read_text())
    del described[name]
    (tmp_path / "seqmill.json").write_text(json.dumps(described))
    for read in (load, lambda path: copy_artifact(path, tmp_path / "copy")):
        with pytest.raises(UserError, match=f"seqmill.json has no entry '{name}': it was changed or cut short"):
            read(tmp_path)
    (tmp_path / "seqmill.json").write_text("[]")
    with pytest.raises(UserError, match=r"format version \[\], this seqmill reads"):
        load(tmp_path)
