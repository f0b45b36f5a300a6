"""promptsource's YAML, read as it is: Jinja `input ||| target`, answer choices. Bach et al. 2022, arXiv:2202.01279."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from acclimate.data.prompts import SEPARATOR, Prompt, PromptSet, names
from acclimate.errors import DataError


class _Loader(yaml.SafeLoader):
    """Plain YAML, no key twice, and promptsource's two tags, both of which are tables."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A table of which every key stands there once."""
        table = super().construct_mapping(node, deep)
        if len(table) < len(node.value):
            raise yaml.MarkedYAMLError(problem="a key stands twice in one table", problem_mark=node.start_mark)
        return table

    def table(self, node: yaml.Node) -> dict[Any, Any]:
        """What either tag stands for."""
        if not isinstance(node, yaml.MappingNode):
            raise yaml.MarkedYAMLError(problem=f"{node.tag} is not a table", problem_mark=node.start_mark)
        return self.construct_mapping(node, deep=True)

    yaml_constructors = {  # noqa: RUF012
        **yaml.SafeLoader.yaml_constructors,
        "!Template": table,
        "!TemplateMetadata": table,
    }


def document(path: Path) -> Any:
    """The value that a YAML file spells. Raises DataError with file and line."""
    try:
        loader = _Loader(path.read_text(encoding="utf-8"))
        return loader.get_single_data()
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        said = getattr(error, "problem", None) or "it cannot be read"
        raise DataError(f"{path.name}{line} is not YAML for templates: {said}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path.name} cannot be read: {getattr(error, 'strerror', None) or error}.") from None


def promptsource(table: Mapping[str, Any], where: str) -> PromptSet:
    """The templates of one data set; those that are not its original task count as turned around.

    task and cluster are the data set's name. Raises DataError that names file and template.
    """
    templates = table.get("templates")
    if not isinstance(templates, Mapping) or not templates:
        raise DataError(f"{where} has no table of templates; promptsource's files have one.")
    task = "/".join(str(table[key]) for key in ("dataset", "subset") if table.get(key)) or where
    return PromptSet(task, task, tuple(_prompt(each, f"{where}: template {key}") for key, each in templates.items()))


def _prompt(template: Any, where: str) -> Prompt:
    if not isinstance(template, Mapping) or not isinstance(template.get("jinja"), str):
        raise DataError(f"{where} has no jinja; each template needs one.")
    metadata = template.get("metadata")
    original = metadata.get("original_task") if isinstance(metadata, Mapping) else None
    name, choices = str(template.get("name") or where), template.get("answer_choices")
    asked, _, wanted = template["jinja"].partition(SEPARATOR)
    prompt = Prompt(name, asked, wanted, "" if choices is None else str(choices), original is False)
    try:
        names(prompt.choices + prompt.input + SEPARATOR + prompt.target)
    except DataError as error:
        raise DataError(f"{where} ({name}): {error}") from None
    return prompt
