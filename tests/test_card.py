"""The model card says what the report says, in Markdown that hostile names cannot break."""

import re
import shlex
from copy import deepcopy
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from acclimate.report import card, verdict
from tests import reports


def header(text: str) -> dict[str, Any]:
    """What stands between the first two lines of dashes."""
    opening, found, _ = text.split("---\n", 2)
    assert opening == ""
    read = yaml.safe_load(found)
    assert isinstance(read, dict)
    return read


def test_the_header_is_what_the_hub_reads() -> None:
    report, _, _ = reports.summary()
    read = header(card(report))
    assert read["base_model"] == "smollm2-135m-instruct"
    assert (read["library_name"], read["pipeline_tag"], read["tags"]) == (
        "peft",
        "text-generation",
        ["acclimate", "lora"],
    )
    result = read["model-index"][0]["results"][0]
    assert result["dataset"] == {"name": "reviews", "type": "reviews"}
    assert result["metrics"][0] == {"type": "rouge1", "name": "ROUGE-1", "value": 0.347}
    assert "license" not in read


def test_scores_stand_with_their_intervals() -> None:
    text = card(reports.summary()[0])
    line = "| ROUGE-2 | 0.064 (0.053 to 0.076) | 0.071 (0.059 to 0.084) | +0.007 (−0.004 to 0.018) | 0.22 | 120 |"
    assert line in text.splitlines()


def test_the_verdict_is_the_pages() -> None:
    report, _, _ = reports.classification(before=0.8, after=0.6, seed=3)
    told = verdict(report)
    text = re.sub(r"\\([\\`*_\[\]<>|#~&])", r"\1", card(report))
    assert f"{told.headline}. {' '.join(told.sentences)}" in text
    assert told.reading == "worse"


def test_peft_is_named_only_where_the_files_are_its() -> None:
    report, _, _ = reports.classification()
    assert 'PeftModel.from_pretrained(base, "adapter")' in card(report)
    report["artifact"]["format"] = "acclimate"
    assert "peft" not in card(report).lower()
    assert "acclimate evaluate --model smollm2-135m-instruct --adapter adapter" in card(report)


def test_the_licence_is_given_or_said_to_be_unknown() -> None:
    report, _, _ = reports.classification()
    assert "| Licence of the base | not recorded; look it up before you share this |" in card(report)
    report["provenance"]["licence"] = "Apache-2.0"
    assert "| Licence of the base | Apache-2.0 |" in card(report)
    assert header(card(report))["license"] == "apache-2.0"


@settings(max_examples=30, deadline=None)
@given(st.text(st.characters(exclude_characters="`", categories=("L", "N", "P", "S")), min_size=1, max_size=40))
def test_the_shell_of_a_card_takes_names_as_one_word(name: str) -> None:
    report, _, _ = reports.classification(n=8)
    report["model"] = name
    (block,) = re.findall(r"^```bash\n(.*?)^```", card(report), re.DOTALL | re.MULTILINE)
    for line in block.splitlines():
        assert shlex.split(line)[2:] == ["--model", name, "--adapter", "adapter"]


def test_the_python_of_a_card_is_python() -> None:
    report, _, _ = reports.classification()
    report["model"] = 'x"); import os; ("'
    (block,) = re.findall(r"```python\n(.*?)```", card(report), re.DOTALL)
    code = compile(block, "card", "exec")
    assert "os" not in code.co_names
    assert 'x"); import os; ("' in code.co_consts


HOSTILE = st.text(max_size=200) | st.sampled_from(
    [
        "```\n# gone",
        "|a|b|",
        "<script>alert(1)</script>",
        "---\nx: y",
        "$(rm -rf ~)",
        "\u202eevil",
        "a\x00b",
        "{{ 7*7 }}",
    ]
)


@settings(max_examples=60, deadline=None)
@given(HOSTILE)
@example("<`")
@example("\\")
@example("`\\`")
def test_hostile_names_break_nothing(name: str) -> None:
    report = deepcopy(reports.classification(n=8)[0])
    plain = card(report)
    report |= {"model": name, "method": name, "objective": name, "warnings": [name]}
    report["data"]["train"]["name"] = name
    report["task"]["labels"] = [name, "yes"]
    report["provenance"] |= {"licence": name, "command": name, "base": name}
    text = card(report)
    text.encode("utf-8")
    assert header(text)["pipeline_tag"] == "text-generation"
    body, usual = (each.split("---\n", 2)[2] for each in (text, plain))
    prose = re.sub(r"```.*?```|`[^`]*`|\\[\\`*_\[\]<>|#~&]", "", body, flags=re.DOTALL)  # without code and escapes
    assert not re.search(r"[<`*\[\]&]", prose.replace("> **Warning.**", ""))
    assert re.findall(r"^#+ .*", body, re.MULTILINE)[1:] == re.findall(r"^#+ .*", usual, re.MULTILINE)[1:]
    assert re.findall(r"^```.*", body, re.MULTILINE) == re.findall(r"^```.*", usual, re.MULTILINE)
    rows = [line for line in text.splitlines() if line.startswith("| Base model")]
    assert len(rows) == 1
    assert len(re.findall(r"(?<!\\)\|", rows[0])) == 3


@pytest.mark.parametrize("report", [{}, {"model": "m"}, {"base": {"scores": {}}, "difference": None}])
def test_a_card_of_almost_nothing_still_reads(report: dict[str, Any]) -> None:
    text = card(report)
    assert "None were measured." in text
    assert "None" not in text.replace("None were measured.", "")


def test_same_report_same_card_and_untouched() -> None:
    report, _, _ = reports.summary()
    before = deepcopy(report)
    assert card(report) == card(deepcopy(report))
    assert report == before
