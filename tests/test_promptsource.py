"""promptsource's files: every template is read, and filled as promptsource fills it."""

import json
import re
from pathlib import Path

import pytest

from acclimate.data.prompts import PromptSet
from acclimate.data.promptsets import prompt_set
from acclimate.data.promptsource import document, promptsource
from acclimate.errors import DataError

DATA = Path(__file__).parents[2] / "shared" / "data"
shared = pytest.mark.skipif(not (DATA / "promptsource").is_dir(), reason="needs ../shared/data")
PAIR = {"sentence1": "One.", "sentence2": "Two.", "label": 1}
NLI = {"premise": "It rains.", "hypothesis": "It is wet.", "label": 0}
CHOICES = {"text": ["a", "b", "c", "d", "e"], "label": ["A", "B", "C", "D", "E"]}
RECORD = "name[The Inn], eatType[pub], food[Thai], priceRange[high], customer rating[5], area[city], near[Zoo]"
RECORD += ", familyFriendly[yes]"
ROWS = {  # one row of each data set in its own columns
    "ag_news": {"text": "They won.", "label": 1},
    "commonsense_qa": {"question": "Which?", "choices": CHOICES, "answerKey": "B"},
    "e2e_nlg_cleaned": {"meaning_representation": RECORD, "human_reference": "The Inn is Thai."},
    "glue__cola": {"sentence": "It is.", "label": 1},
    "glue__mnli": NLI,
    "glue__mrpc": PAIR,
    "glue__qnli": {"question": "What falls?", "sentence": "Rain falls.", "label": 0},
    "glue__qqp": {"question1": "Why?", "question2": "How come?", "label": 1},
    "glue__rte": PAIR,
    "glue__sst2": {"sentence": "A fine film.", "label": 1},
    "glue__stsb": {"sentence1": "One.", "sentence2": "Two.", "label": 3.8},
    "hellaswag": {
        **{"ctx": "A man. He", "ctx_a": "A man.", "ctx_b": "He", "activity_label": "Sport", "label": "2"},
        "endings": ["runs.", "sleeps.", "sings.", "eats."],
    },
    "imdb": {"text": "A fine film.", "label": 1},
    "openbookqa__main": {
        "question_stem": "Which?",
        "choices": {"text": list("abcd"), "label": list("ABCD")},
        "answerKey": "C",
    },
    "piqa": {"goal": "Boil an egg.", "sol1": "In water.", "sol2": "In sand.", "label": 0},
    "samsum": {"dialogue": "A: Hi.\nB: Hi.", "summary": "They greet."},
    "sciq": {
        **{"question": "Which?", "correct_answer": "iron", "distractor1": "gold", "distractor2": "tin"},
        **{"distractor3": "lead", "support": "It is iron."},
    },
    "super_glue__boolq": {"question": "is it so", "passage": "It is so.", "label": 1},
    "super_glue__cb": NLI,
    "super_glue__copa": {
        "premise": "It rained.",
        "question": "effect",
        "choice1": "Wet.",
        "choice2": "Dry.",
        "label": 0,
    },
    "super_glue__rte": NLI,
    "super_glue__wic": {"word": "bank", "sentence1": "A bank.", "sentence2": "The bank.", "label": 0},
    "super_glue__wsc.fixed": {
        **{"text": "Ann saw her dog.", "span1_text": "Ann", "span2_text": "her", "label": 1},
        **{"span1_index": 0, "span2_index": 2},
    },
    "trec": {"text": "Where is it?", "coarse_label": 4, "fine_label": 33},
    "winogrande__winogrande_xl": {"sentence": "The _ fell.", "option1": "cup", "option2": "table", "answer": "1"},
    "xsum": {"document": "Long.", "summary": "Short."},
}
MORE = {  # what other rows of it have, where a template waits for them
    "super_glue__copa": [{"question": "cause"}, {"question": "effect"}],
    "trec": [{"coarse_label": coarse, "fine_label": fine} for coarse, fine in enumerate((0, 2, 24, 28, 33, 40))],
}
SAMPLE = """dataset: pets
subset: dogs
templates:
  a1: !Template
    answer_choices: no ||| yes
    id: a1
    jinja: "{% set word = ['dog', 'hound'] | choice %}Is {{ name }} a {{ word }}?\\n{% if sure %}\\nSure.
      ||| {{ answer_choices[label] }} {{ word }}{% endif %}"
    metadata: !TemplateMetadata
      original_task: true
    name: ask
    reference: ''
  b2: !Template
    answer_choices: null
    id: b2
    jinja: "{{ marks | most_frequent | join(' ') }} {% for a, b in zip(marks, marks) %}{{ a }}{{ b }}{% endfor %}|||{{ name }}"
    metadata: !TemplateMetadata
      original_task: false
    name: count
    reference: ''
"""


def sample(text: str, tmp_path: Path) -> PromptSet:
    path = tmp_path / "pets.yaml"
    path.write_text(text, encoding="utf-8")
    return promptsource(document(path), path.name)


def test_a_file_becomes_a_set(tmp_path):
    made = sample(SAMPLE, tmp_path)
    assert (made.task, made.cluster) == ("pets/dogs", "pets/dogs")
    assert [(prompt.name, prompt.choices, prompt.turned) for prompt in made.prompts] == [
        ("ask", "no ||| yes", False),
        ("count", "", True),
    ]
    assert prompt_set(str(tmp_path / "pets.yaml")) == made


def test_input_and_target_are_filled_together(tmp_path):
    made = sample(SAMPLE, tmp_path)
    words = set()
    for number in range(20):
        (example,) = made.every({"name": f"Rex {number}", "sure": True, "label": 1})
        word = example.prompt.split(" a ")[1].split("?")[0]
        assert example.prompt == f"Is Rex {number} a {word}?\n\nSure."  # line breaks after a block stay
        assert example.target == f"yes {word}"
        assert example == made.every({"name": f"Rex {number}", "sure": True, "label": 1})[0]
        words.add(word)
    assert words == {"dog", "hound"}
    assert made.every({"name": "Rex", "sure": False, "label": 1}) == ()  # no ||| was written


def test_its_own_functions_are_there(tmp_path):
    made = sample(SAMPLE, tmp_path)
    example = made.render(made.prompts[1], {"name": "Rex", "marks": ["b", "a", "b"]})
    assert example is not None
    assert (example.prompt, example.target) == ("b bbaabb", "Rex")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("!TemplateMetadata", "!!python/object/apply:os.mkdir", "pets.yaml:9 is not YAML for templates: could not det"),
        ("!TemplateMetadata", "!Other", "pets.yaml:9 is not YAML for templates: could not determine a constructor"),
        ("!Template\n", "!Template a\n", "pets.yaml:5 is not YAML for templates"),
        ("    id: a1", "    id: a1\n    id: a2", "pets.yaml:4 is not YAML for templates: a key stands twice"),
        ("templates:", "prompts:", "pets.yaml has no table of templates"),
        ('    jinja: "{%', '    ninja: "{%', "pets.yaml: template a1 has no jinja"),
        ("{% endif %}", "", "pets.yaml: template a1 (ask): The template is not valid Jinja"),
    ],
)
def test_what_is_wrong_with_a_file_is_told(old, new, said, tmp_path):
    assert old in SAMPLE
    with pytest.raises(DataError) as caught:
        sample(SAMPLE.replace(old, new, 1), tmp_path)
    assert said in str(caught.value)


@shared
def test_every_published_template_is_read():
    files = sorted((DATA / "promptsource").glob("*.yaml"))
    assert {path.stem for path in files} == ROWS.keys()
    assert sum(len(prompt_set(str(path)).prompts) for path in files) == 230


@shared
@pytest.mark.parametrize("name", sorted(ROWS))
def test_every_published_template_can_be_filled(name):
    made = prompt_set(str(DATA / "promptsource" / f"{name}.yaml"))
    rows = [{**ROWS[name], **more} for more in MORE.get(name, [{}])]
    for prompt in made.prompts:
        filled = [example for row in rows if (example := made.render(prompt, row))]
        assert filled, prompt.name
        assert all(e.target in e.fields["choices"] for e in filled if "choices" in e.fields)


@shared
def test_rows_come_out_as_in_the_training_data_of_t0():
    """T0's own renderings of MRPC, found by their two sentences; T0 read them from another copy, with other spacing."""

    def plain(text: str) -> str:
        return re.sub(r"\W", "", text)

    published = (DATA / "p3_t0_prompts" / "all.jsonl").read_text(encoding="utf-8").splitlines()
    theirs = [row for row in map(json.loads, published) if row["template"].startswith("glue_mrpc")]
    asked = [(plain(row["prompt"]), row["completion"].strip()) for row in theirs]
    made = prompt_set(str(DATA / "promptsource" / "glue__mrpc.yaml"))
    seen = 0
    for line in (DATA / "mrpc" / "train.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        first, second = plain(row["sentence1"]), plain(row["sentence2"])
        found = [(prompt, wanted) for prompt, wanted in asked if first in prompt and second in prompt]
        if found:
            ours = [made.render(prompt, row) for prompt in made.prompts]
            spoken = {(plain(example.prompt), example.target) for example in ours if example}
            assert set(found) <= spoken
            seen += len(found)
    assert seen > 40
