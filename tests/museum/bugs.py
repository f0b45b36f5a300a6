"""The bugs: where each is planted, where people met it or its kin, and the test that must see it.

`old` stands once in `file`; where the package moves on, plant the bug anew. Threads are issues and pull requests, by project:
tf = huggingface/transformers, peft = huggingface/peft, trl = huggingface/trl, LF = hiyouga/LLaMA-Factory,
axo = axolotl-ai-cloud/axolotl, oi = allenai/open-instruct, uns = unslothai/unsloth, verl = verl-project/verl.
"""

from typing import NamedTuple


class Bug(NamedTuple):
    """One historical bug."""

    guarantee: str
    thread: str
    file: str
    old: str
    new: str
    test: str


BUGS = {
    # G1: supervised tokens are the answer
    "the whole conversation is supervised": Bug(
        "G1",
        "trl#523",
        "data/template.py",
        "segments.append(Segment(before[len(done) :], False))",
        "segments.append(Segment(before[len(done) :], True))",
        "test_codec.py::test_supervised_tokens_are_the_answers_and_their_ends",
    ),
    "turns that should not train do": Bug(
        "G1",
        "tf#47325",
        "data/template.py",
        "return [Segment(content, message.train), Segment(close, message.train),",
        "return [Segment(content, True), Segment(close, True),",
        "test_codec.py::test_supervised_tokens_are_the_answers_and_their_ends",
    ),
    "the mask is one token off": Bug(
        "G1",
        "trl#1053",
        "tokens/codec.py",
        "scored += [counts] * len(piece)",
        "scored += [counts and bool(place) for place in range(len(piece))]",
        "test_codec.py::test_supervised_tokens_are_the_answers_and_their_ends",
    ),
    "a row without a prompt is learned whole": Bug(
        "G1",
        "trl#1053",
        "run/prepare.py",
        "if not isinstance(row, Document) and all(scored for text, scored in pieces if text):",
        "if False:",
        "test_prepare.py::test_a_row_without_a_prompt_is_refused_by_line",
    ),
    "a row without an answer is learned from": Bug(
        "G1",
        "trl#1191",
        "run/prepare.py",
        "if not any(encoded.scored if encoded.source else encoded.scored[1:]):",
        "if False:",
        "test_prepare.py::test_a_row_without_a_scored_token_is_refused_by_line",
    ),
    # G2: the model learns to stop
    "the loss skips every id that is the pad id": Bug(
        "G2",
        "trl#976",
        "tokens/codec.py",
        "scored += [counts] * len(piece)",
        "scored += [counts and i != self.pad for i in piece]",
        "test_codec.py::test_masks_do_not_come_from_the_pad_id",
    ),
    "the loss skips padding ids of a batch": Bug(
        "G2",
        "tf#23530",
        "tokens/batch.py",
        "places = [(r * width + t - 1, row.ids[t], r) for r, row in enumerate(rows) for t in _scored(row)]",
        "places = [(r * width + t - 1, i, r) for r, row in enumerate(rows) for t in _scored(row) if (i := row.ids[t]) != fill]",
        "test_batches.py::test_an_end_that_is_the_pad_id_is_learned",
    ),
    "the end of a turn is not supervised": Bug(
        "G2",
        "trl#988",
        "data/template.py",
        "Segment(close, message.train)",
        "Segment(close, False)",
        "test_codec.py::test_supervised_tokens_are_the_answers_and_their_ends",
    ),
    "the end of an answer is not supervised": Bug(
        "G2",
        "trl#1623",
        "data/template.py",
        "Segment(spaced(prompt.text, answer), True), Segment(self.end, True))",
        "Segment(spaced(prompt.text, answer), True), Segment(self.end, False))",
        "test_codec.py::test_an_answer_ends_with_a_scored_terminator",
    ),
    "the terminators of the generation config are not obeyed": Bug(
        "G2",
        "trl#3091",
        "models/load.py",
        "for number in [*ids, tokenizer.eos_token_id]",
        "for number in [tokenizer.eos_token_id]",
        "test_load.py::test_terminators",
    ),
    # G4: the prompt's ids are the served ids
    "the boundary is the length of the prompt encoded alone": Bug(
        "G4",
        "trl#6105",
        "tokens/codec.py",
        "piece = self.continuation(text) if index else self._first(text)",
        'piece = self._first("".join(t for t, _ in runs[: index + 1]))[len(ids) :]',
        "test_codec.py::test_a_boundary_inside_a_word_keeps_the_ids_of_the_prompt",
    ),
    "the space before the answer stays with the prompt": Bug(
        "G4",
        "trl#1702",
        "tokens/codec.py",
        "if runs[i].scored and not runs[i - 1].scored and kept:",
        "if False:",
        "test_codec.py::test_a_space_at_the_end_of_the_prompt_moves_to_the_answer",
    ),
    "the prompt is served with the space that training moved away": Bug(
        "G4",
        "trl#1702",
        "evaluation/predictor.py",
        'row = codec.encode((*pieces, Segment("?", True)), where)',
        "row = codec.encode(pieces, where)\n    row = row._replace(ids=(*row.ids, 0), scored=(*row.scored, True))",
        "test_codec.py::test_prompt_ids_are_a_prefix_of_the_training_row",
    ),
    # G6: truncation is explicit
    "a row without a scored token survives truncation": Bug(
        "G6",
        "trl#3382",
        "tokens/truncate.py",
        "if shorter is None or not any(shorter.scored[1:] if not shorter.source else shorter.scored):",
        "if shorter is None:",
        "test_codec.py::TestTruncation::test_response_loses_its_end_and_is_dropped_when_nothing_is_left",
    ),
    "long rows are cut without a word": Bug(
        "G6",
        "trl#3382",
        "tokens/truncate.py",
        'if policy == "error":',
        'if policy == "never":',
        "test_codec.py::TestTruncation::test_error_names_row_length_and_choices",
    ),
    "the prompt is cut at its end, where the question is": Bug(
        "G6",
        "trl#3382",
        "tokens/truncate.py",
        "ids = row.ids[:keep] + row.ids[keep + excess :]",
        "ids = row.ids[: prompt - excess] + row.ids[prompt:]",
        "test_codec.py::TestTruncation::test_prompt_keeps_bos_and_the_answer",
    ),
    "what was cut is not counted": Bug(
        "G6",
        "trl#3382",
        "tokens/truncate.py",
        "done.cut.append(row.where)",
        "pass",
        "test_prepare.py::test_a_long_row_is_an_error_unless_the_recipe_says_otherwise",
    ),
    # G9: a batch is a set of examples
    "the mean of the means of the passes": Bug(
        "G9",
        "tf#24725",
        "training/fit.py",
        "loss = objective(model, batch)",
        "loss = (lambda one: Loss(one.total / one.count, torch.tensor(1)))(objective(model, batch))",
        "test_batches.py::test_every_cut_into_batches_gives_the_same_step[cut1-lm-llama]",
    ),
    "the loss logged is that of the last pass": Bug(
        "G9",
        "trl#2175",
        "training/fit.py",
        "total = sum(float(loss.total) for loss in done)",
        "total = float(done[-1].total) / float(done[-1].count) * count",
        "test_batches.py::test_every_cut_into_batches_gives_the_same_step[cut1-lm-llama]",
    ),
    "rows are weighed by their tokens within a pass": Bug(
        "G9",
        "verl#7200",
        "objectives/lm.py",
        "return Loss(-(logprob / counts[owner]).sum(), (counts > 0).sum())",
        "return Loss(-logprob.mean() * (counts > 0).sum(), (counts > 0).sum())",
        "test_batches.py::test_every_cut_into_batches_gives_the_same_step[cut1-sequence_lm-llama]",
    ),
    # G10: a row's result does not depend on its batch
    "padding on the left moves the positions": Bug(
        "G10",
        "uns#3699",
        "models/cache.py",
        'if "position_ids" in accepted:',
        "if False:",
        "test_decode.py::test_greedy_equals_the_loop_without_cache_batch_or_padding",
    ),
    "the mask comes from the pad id": Bug(
        "G10",
        "oi#75",
        "models/cache.py",
        "return torch.tensor(ids), torch.tensor(mask)",
        "return torch.tensor(ids), (torch.tensor(ids) != pad).long()",
        "test_decode.py::test_greedy_equals_the_loop_without_cache_batch_or_padding",
    ),
    "the mask of a training batch comes from the pad id": Bug(
        "G10",
        "oi#75",
        "tokens/batch.py",
        "        mask[r, place] = 1\n    return ids, mask",
        "    return ids, (ids != fill).long()",
        "test_batches.py::test_log_probabilities_equal_the_slow_loop",
    ),
    "a finished row keeps its place in the cache": Bug(
        "G10",
        "peft#3620",
        "generation/decode.py",
        "rows, past, ids = _select(rows, keep), select(past, keep), ids[keep]",
        "rows, past, ids = _select(rows, keep), select(past, range(len(keep))), ids[keep]",
        "test_decode.py::test_greedy_equals_the_loop_without_cache_batch_or_padding",
    ),
    "draws come in the order of the batch": Bug(
        "G10",
        "oi#75",
        "generation/decode.py",
        "uniforms(seed, place, ends.max_new) for place in places",
        "uniforms(seed, row, ends.max_new) for row in range(len(places))",
        "test_decode.py::test_samples_equal_the_loop_with_the_same_draws",
    ),
    # G11: packing is invisible
    "a document of a stream sees those before it": Bug(
        "G11",
        "trl#1230",
        "models/attention.py",
        "    if pieces is None:\n",
        "    if True:\n",
        "test_batches.py::test_packed_equals_padded_and_a_document_cannot_move_its_neighbour",
    ),
    "what two documents begin with is seen by the first alone": Bug(
        "G11",
        "trl#3910",
        "models/attention.py",
        "if piece.parent >= 0:",
        "if piece.parent >= 0 and piece.parent == len(seen) - 1:",
        "test_tree.py::test_branches_change_no_logprob_and_no_gradient",
    ),
    "positions go on from document to document": Bug(
        "G11",
        "trl#3910",
        "tokens/batch.py",
        "positions = torch.cat([torch.arange(depth, depth + p.length) for p, depth in zip(pieces, _depths(pieces))])[None]",
        "positions = torch.arange(ids.shape[1])[None]",
        "test_batches.py::test_packed_equals_padded_and_a_document_cannot_move_its_neighbour",
    ),
    "the last bin of every pass over the data is lost": Bug(
        "G11",
        "axo#3465",
        "tokens/schedule.py",
        "        epoch += 1\n",
        "        epoch, current, used = epoch + 1, [], 0\n",
        "test_batches.py::TestPlan::test_every_row_comes_once_a_pass_and_none_is_cut",
    ),
    "the first token of a document is asked of the one before": Bug(
        "G11",
        "trl#1230",
        "tokens/batch.py",
        "return [t for t, counts in enumerate(row.scored) if counts and t]",
        "return [t for t, counts in enumerate(row.scored) if counts]",
        "test_batches.py::test_the_first_token_of_a_document_is_asked_of_nobody",
    ),
    # G21: what is trainable trains, and nothing else moves
    "the base trains along": Bug(
        "G21",
        "peft#1142",
        "methods/delta.py",
        "    model.requires_grad_(False)\n    install(model, method, name, seed, beside)",
        "    install(model, method, name, seed, beside)",
        "test_methods.py::test_llama_opens_so_many_numbers",
    ),
    "an adapter is never asked": Bug(
        "G21",
        "tf#26221",
        "methods/delta.py",
        "(switch(x, output[0]), *output[1:]) if isinstance(output, tuple) else switch(x, output)",
        "output",
        "test_methods.py::test_what_is_declared_moves_and_nothing_else[SGD-llama-lora]",
    ),
    "a layer that is computed around is not noticed": Bug(
        "G21",
        "peft#1142",
        "training/health.py",
        "absent = [n for n, p in self.parameters.items() if p.grad is None]",
        "absent: list[str] = []",
        "test_fit.py::test_a_module_that_is_computed_around_is_named",
    ),
    "a tensor that only receives zeros is not noticed": Bug(
        "G21",
        "tf#26221",
        "training/health.py",
        "if self.moved >= 4 and loud:",
        "if False:",
        "test_fit.py::test_a_tensor_that_only_gets_zeros_is_named",
    ),
    # G22: what was trained is saved
    "heads are not saved": Bug(
        "G22",
        "peft#2118",
        "methods/artifact.py",
        "        if (parameter.requires_grad if path in own else mine in path)\n",
        '        if (parameter.requires_grad if path in own else mine in path) and "head" not in path\n',
        "test_artifact.py::test_what_trained_is_saved_and_comes_back_bit_for_bit",
    ),
    "what does not fit is left out in silence": Bug(
        "G22",
        "trl#1379",
        "methods/artifact.py",
        "    if missing or extra:\n",
        "    if False:\n",
        "test_artifact.py::test_an_artifact_that_does_not_fit_changes_nothing",
    ),
    "an adapter that is loaded stays at its start": Bug(
        "G22",
        "peft#2118",
        "methods/artifact.py",
        "        wanted[key].copy_(tensor)",
        "        wanted[key].clone().copy_(tensor)",
        "test_artifact.py::test_what_trained_is_saved_and_comes_back_bit_for_bit",
    ),
    # G28: resume is the same run
    "the data begins anew": Bug(
        "G28",
        "trl#2657",
        "run/train.py",
        "for part in parts] for parts in cut[start:])",
        "for part in parts] for parts in cut[: len(cut) - start])",
        "test_resume.py::test_killed_after_a_step[5-lora]",
    ),
    "random numbers begin anew": Bug(
        "G28",
        "tf#17032",
        "run/train.py",
        '    torch.set_rng_state(kept["random/cpu"])\n',
        "",
        "test_resume.py::test_killed_after_a_step[5-lora]",
    ),
    "the optimizer begins anew": Bug(
        "G28",
        "tf#46628",
        "run/train.py",
        '    optim.restore(optimizer, trainable(model), _below("optimizer/", kept))\n',
        "",
        "test_resume.py::test_killed_after_a_step[5-full]",
    ),
    "the schedule begins anew": Bug(
        "G28",
        "tf#46628",
        "training/fit.py",
        "course = Course(trainable(model), optimizer, rate, max_norm)",
        "course = Course(trainable(model), optimizer, lambda i: rate(i - start), max_norm)",
        "test_resume.py::test_killed_after_a_step[5-full]",
    ),
    "steps are logged twice": Bug(
        "G28",
        "tf#46628",
        "run/train.py",
        "    truncate_log(run.log, start)\n",
        "",
        "test_resume.py::test_killed_after_a_step[5-head]",
    ),
    "a look at the dev part ends the dropout": Bug(
        "G28",
        "tf#46628",
        "generation/score.py",
        "    with evaluating(model):\n",
        "    model.eval()\n    if True:\n",
        "test_resume.py::test_killed_after_a_step[5-lora]",
    ),
    # G29: a checkpoint is whole or absent
    "a checkpoint is written in its place": Bug(
        "G29",
        "tf#27820",
        "training/checkpoint.py",
        'folder / f"{_SAVING}{step:08d}"',
        'folder / f"step-{step:08d}"',
        "test_checkpoint_crashes.py::test_a_disk_that_fills_at_any_byte",
    ),
    "the old checkpoint goes before the new one is whole": Bug(
        "G29",
        "tf#27820",
        "training/checkpoint.py",
        "        folder.mkdir(parents=True, exist_ok=True)\n        _fill(",
        "        folder.mkdir(parents=True, exist_ok=True)\n        _prune(folder, step, 1)\n        _fill(",
        "test_checkpoint_crashes.py::test_a_disk_that_fills_at_any_byte",
    ),
    "a damaged checkpoint is resumed from": Bug(
        "G29",
        "tf#27820",
        "training/checkpoint.py",
        "        fault = _fault(path, step)\n",
        '        fault = ""\n',
        "test_checkpoint.py::test_a_broken_checkpoint_is_skipped_and_reported",
    ),
    "a file is written over in place": Bug(
        "G29",
        "tf#27820",
        "training/checkpoint.py",
        'part = path.with_name(f".{path.name}.{os.getpid()}{_PART}")',
        "part = path",
        "test_checkpoint_crashes.py::test_atomic_write_fails_without_a_trace",
    ),
    # G16: nothing that is not scored reaches a loss. G17: what samples is what trains
    "what is not scored reaches the loss": Bug(
        "G16",
        "trl#3750",
        "models/logprobs.py",
        "    return states.flatten(0, 1)[batch.predict]\n",
        "    return states.flatten(0, 1)[batch.predict] + 0 * states.sum()\n",
        "test_alignment_properties.py::test_what_is_not_scored_may_be_anything[ppo]",
    ),
    "dropout is on while a policy learns": Bug(
        "G17",
        "trl#454",
        "run/train.py",
        "    model.train(not rolls(prepared.recipe))\n",
        "    model.train()\n",
        "test_alignment_properties.py::test_without_a_rate_every_ratio_is_1_and_there_is_no_kl[ppo-full]",
    ),
}

# ★ in guarantees.md, and touched by what the package does so far. DPO (G15) is to come.
STARRED = ("G1", "G2", "G4", "G6", "G9", "G10", "G11", "G16", "G17", "G21", "G22", "G28", "G29")
