"""A model and prompts for learning from one's own completions, and what is paid for them, of which several tests make use."""

import torch

from tests import spelling, tiny

WORDS = ("quick", "brown", "lazy", "good", "bad", "fox", "dog")


def vowels(completions):
    """The share of vowels and spaces among the characters."""
    return [sum(map(c.text.count, "aeiou ")) / max(1, len(c.text)) for c in completions]


def spread_out(folder):
    """A tiny model with dropout and its tokenizer, of weights so far apart that what was learned shows."""
    tokenizer = spelling.byte_level()
    torch.manual_seed(0)
    model = tiny.llama(tied=True, vocab=len(tokenizer), dropout=0.2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def films(first, count):
    """So many texts that begin with a word, no two alike."""
    say = "{} {} {} number {} is a film".format
    return [{"text": say(first, WORDS[n % 7], WORDS[n % 5], n), "label": "x"} for n in range(count)]
