"""Deliberate breaks of the library, each with the test that must fail. tests/test_mutations.py applies them to a copy.

A break names a file of gradchain/, the exact text that stands there once, what takes its place, and one test. It is
kept because that test is what holds the fact: if a break survives, the test has become decoration.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Break:
    """One deliberate break.

    Attributes:
        id: what goes wrong.
        file: below gradchain/.
        old: the text to replace; it must occur exactly once.
        new: what takes its place.
        test: the test that must fail, as pytest takes it from tests/.
    """

    id: str
    file: str
    old: str
    new: str
    test: str


PARITY = "test_parity.py::test_row_moves_the_weights_as_its_peer_does"
ABSENT = "test_counts.py::test_absent_parameters_are_to_us_what_grad_none_is_to_torch"
PARAMS = "adapters/test_mmengine_params.py::test_random_configs_against_mmengine"
LISTS = "adapters/test_mmengine_schedules.py::test_random_lists_against_mmengine"
RUNS = "adapters/test_mmengine_runs.py::test_the_same_weights_after_200_iterations"
FOUND = "adapters/test_mmengine_attacked_found.py::test_a_number_out_of_range_is_refused_when_it_is_read"
TWICE = "test_purity.py::test_update_changes_none_of_its_arguments"
POWER = "faults/test_what_can_go_wrong.py::test_a_few_of_each[power-a file]"
APART = "faults/test_what_can_go_wrong.py::test_a_few_of_each_in_a_process_of_their_own"

BREAKS: tuple[Break, ...] = (
    Break(
        "noise-without-the-step",
        "core/random.py",
        "blocks >> 32, step & WORD, stream)",
        "blocks >> 32, 0, stream)",
        f"{PARITY}[add_noise-a float64 twin]",
    ),
    Break(
        "a-kernel-draws-from-the-begin-of-each-item",
        "engine/executors/print_draws.py",
        "{first} + (uint64_t)from;",
        "{first};",
        "engine/test_draws.py::test_an_executor_gives_the_bits_of_the_reference[native-float32-signs]",
    ),
    Break(
        "no-record-of-what-is-written",
        "updater/journal.py",
        "        self.pending = pending\n        self._finish(pending)",
        "        self._finish(pending)",
        "updater/test_atomic.py::test_an_interrupt_at_any_line[masked]",
    ),
    Break(
        "kernels-leave-no-mark",
        "engine/executors/drive.py",
        "  *done = 1;",
        "  *done = 0;",
        "updater/test_atomic.py::test_an_interrupt_at_any_line[partition]",
    ),
    Break(
        "a-bucket-is-written-twice",
        "engine/executors/blocks.py",
        "                self._now = (k, ready)\n",
        "                self._now = (k, None)\n",
        "updater/test_atomic.py::test_an_interrupt_where_torch_writes_in_several_calls[masked-blocks]",
    ),
    Break(
        "memory-written-in-place",
        "adapters/stand_ins.py",
        "slots = state.copied()",
        "slots = state",
        "test_purity.py::test_update_changes_none_of_its_arguments[from_torch]",
    ),
    Break(
        "no-bias-correction",
        "transforms/adam.py",
        "correction(self.b2, count)",
        "1.0",
        f"{PARITY}[scale_by_adam-torch.optim.Adam]",
    ),
    Break(
        "eps-inside-the-root",
        "transforms/adam.py",
        "root = (nu + second * self.eps_root).sqrt() + (self.eps if self.eps_hat else second**0.5 * self.eps)",
        "root = (nu + second * (self.eps_root + self.eps)).sqrt()",
        f"{PARITY}[scale_by_adam-eps-torch.optim.Adam(eps=0.3)]",
    ),
    Break(
        "count-shared-by-all-parameters",
        "core/scalars.py",
        "Scalars({n: int(n in updates) for n in self._names})",
        "Scalars({n: 1 for n in self._names})",
        f"{ABSENT}[scale_by_adam-torch.optim.Adam]",
    ),
    Break(
        "norm-in-float32",
        "core/eager.py",
        "    return torch.complex128 if value.is_complex() else torch.float64\n",
        "    return torch.complex64 if value.is_complex() else torch.float32\n",
        "test_laws.py::test_low_precision_neither_overflows_nor_underflows_inside[huge-bfloat16-clip_by_norm]",
    ),
    Break(
        "absent-entries-not-kept",
        "core/eager.py",
        "mine[position[n]].to(b.dtype) if n in position else b for n, b",
        "mine[position[n]].to(b.dtype) if n in position else torch.zeros_like(b) for n, b",
        f"{ABSENT}[trace-torch.optim.SGD(momentum=0.9)]",
    ),
    Break(
        "masked-passes-the-wrong-members",
        "combinators/masked.py",
        "        out, inner = as_chain(self.inner).update(mine, state, ctx.narrow(members))",
        "        out, inner = as_chain(self.inner).update(g, state, ctx)",
        f"{PARITY}[masked-torch.optim.SGD with two groups]",
    ),
    Break(
        "schedule-read-one-late",
        "core/hyper.py",
        "isinstance(value, Schedule) else value(step))",
        "isinstance(value, Schedule) else value(step + 1))",
        f"{PARITY}[scale-torch.optim.SGD]",
    ),
    Break(
        "state-not-rounded-when-stored",
        "core/eager.py",
        "mine[position[n]].to(b.dtype) if n in position else b for n, b",
        "mine[position[n]] if n in position else b for n, b",
        "test_laws.py::test_dtypes_are_kept[bfloat16-scale_by_adam]",
    ),
    Break(
        "gradient-written-by-foreach",
        "core/_torch.py",
        "            return list(_FOREACH[kernel](*columns))\n",
        "            if kernel == 'sign':\n                torch._foreach_sign_(*columns)\n"
        "            return list(_FOREACH[kernel](*columns))\n",
        f"{TWICE}[scale_by_sign]",
    ),
    Break(
        "momentum-shares-memory-with-the-gradient",
        "core/_torch.py",
        "        return list(torch._foreach_add(a, b, alpha=alpha))\n",
        "        torch._foreach_add_(a, b, alpha=alpha)\n        return a\n",
        f"{TWICE}[trace]",
    ),
    Break(
        "vmap-broken-by-float",
        "transforms/clip.py",
        "factor = limit / maximum(norm + self.eps, limit)",
        "factor = limit / maximum(float(norm) + self.eps, limit)",
        "test_functional.py::test_an_ensemble_under_vmap_is_a_loop_over_its_members[clip_by_norm]",
    ),
    Break(
        "derivative-broken-by-float",
        "transforms/clip.py",
        "factor = limit / maximum(norm + self.eps, limit)",
        "factor = limit / maximum(float(norm) + self.eps, limit)",
        "test_functional.py::test_a_link_differentiates[clip_by_norm]",
    ),
    Break(
        "hidden-if-on-a-device-value",
        "transforms/clip.py",
        "factor = limit / maximum(norm + self.eps, limit)",
        "factor = limit / (norm + self.eps) if norm + self.eps > limit else 1.0",
        "test_functional.py::test_a_link_never_reads_the_device[clip_by_norm]",
    ),
    Break(
        "clip-doubles-small-updates",
        "transforms/clip.py",
        "factor = limit / maximum(norm + self.eps, limit)",
        "factor = minimum(2.0, limit / (norm + self.eps))",
        "test_laws.py::test_clips[clip_by_norm]",
    ),
    Break(
        "config-forgets-infinity",
        "core/config.py",
        'return value if math.isfinite(value) else {"float": str(value)}',
        "return value",
        "test_state.py::test_config_goes_through_json[clip_by_norm-max]",
    ),
    Break(
        "count-lost-in-a-checkpoint",
        "updater/state_dict.py",
        "            return Count(current.names, int(saved))\n",
        "            return current\n",
        "test_state.py::test_save_load_continue_is_bitwise_equal[float64-all-scale_by_adam]",
    ),
    Break(
        "interval-open-where-it-is-closed",
        "transforms/adam.py",
        'b1: Hyper = Hyper(0.9, "[0, 1)")',
        'b1: Hyper = Hyper(0.9, "[0, 1]")',
        "test_errors.py::test_a_bad_argument_is_refused_in_a_full_sentence[scale_by_adam-b1-1.0]",
    ),
    Break(
        "link-without-a-row",
        "transforms/sign.py",
        "class scale_by_sign(Transform):",
        'class scale_by_nothing(Transform):\n    """Unknown."""\n\n\nclass scale_by_sign(Transform):',
        "test_completeness.py::test_every_registered_link_has_a_row",
    ),
    Break(
        "import-upwards",
        "transforms/sign.py",
        "from gradchain.core.tensors import Tensors\n",
        "from gradchain.core.tensors import Tensors\nfrom gradchain.updater.info import UpdateInfo  # noqa: F401\n",
        "test_house.py::test_imports_go_one_way[transforms/sign.py]",
    ),
    Break(
        "a-factor-that-is-lost",
        "core/spread.py",
        "        for factors in self._factors:\n",
        "        for factors in self._factors[:0]:\n",
        "test_per_parameter.py::test_equals_param_groups_in_one_kernel[sgd-14]",
    ),
    Break(
        "numbers-per-parameter-in-another-order",
        "engine/planning/plan.py",
        "return column if places is None else column[places]",
        "return column",
        "test_per_parameter.py::test_engine_equals_reference[native]",
    ),
    Break(
        "columns-divided-by-a-reciprocal",
        "core/operations.py",
        "torch.div(a if isinstance(a, Tensor) else torch.full_like(b, a), b)",
        "a / b",
        "test_per_parameter.py::test_a_column_computes_as_its_entries_do[/]",
    ),
    Break(
        "the-last-match-wins",
        "selectors/rules.py",
        "for selector, value in reversed(self.pairs):",
        "for selector, value in self.pairs:",
        "selectors/test_rules.py::test_gives_exactly[9]",
    ),
    Break(
        "overlapping-windows-in-the-other-order",
        "adapters/mmengine/curves/schedules.py",
        "    return overlay(base, *first, *after_them)\n",
        "    return overlay(base, *after_them, *first)\n",
        f"{LISTS}[0]",
    ),
    Break(
        "one-step-too-many-in-a-window",
        "adapters/mmengine/curves/kinds.py",
        "linear(start, end, span.n - 1)",
        "linear(start, end, span.n)",
        f"{LISTS}[0]",
    ),
    Break(
        "a-cosine-that-does-not-climb",
        "adapters/mmengine/curves/kinds.py",
        "    if span.count - 1 <= half or not is_whole(half):\n",
        "    if half > 0:\n",
        f"{LISTS}[2]",
    ),
    Break(
        "a-window-that-stands-sets",
        "schedules/overlays.py",
        "    if (a0, b0) == (a1, b1):\n",
        "    if (a0, b0) == (a1, b1) and a0:\n",
        "schedules/test_schedule_overlays.py::test_a_window_that_stands_leaves_the_value_alone",
    ),
    Break(
        "the-shortest-key-wins",
        "adapters/mmengine/groups/paramwise.py",
        "key=len, reverse=True)",
        "key=len)",
        f"{PARAMS}[0]",
    ),
    Break(
        "a-bias-before-a-norm",
        "adapters/mmengine/groups/constructors.py",
        'given = {"norm": NORM, "bias": free, ',
        'given = {"bias": free, "norm": NORM, ',
        f"{PARAMS}[14]",
    ),
    Break(
        "a-fault-that-is-forgotten",
        "adapters/mmengine/groups/params.py",
        "        paramwise.check_used()\n",
        "        pass\n",
        "adapters/test_mmengine_constructors.py::test_what_cannot_act_is_named[config9-sentence9]",
    ),
    Break(
        "a-key-without-a-number-keeps-nothing",
        "adapters/mmengine/groups/rules.py",
        "if r.closes or name in r.items",
        "if name in r.items",
        "adapters/test_mmengine_rules.py::test_code_comes_to_the_groups[False-numbers of its own]",
    ),
    Break(
        "a-floor-that-only-a-groups-number-reaches",
        "adapters/mmengine/recipe/group_values.py",
        "        for number in numbers:\n            values",
        "        for number in [2.0]:\n            values",
        "adapters/test_mmengine_rules.py::test_a_floor_that_only_a_groups_number_reaches",
    ),
    Break(
        "a-number-that-leaves-its-range",
        "adapters/mmengine/recipe/whole.py",
        "    _check_ranges(made, optimizer.entry, recipe)\n",
        "",
        f"{FOUND}[a rate below 0]",
    ),
    Break(
        "a-ragged-end-averaged-as-a-whole-window",
        "adapters/mmengine/recipe/wrappers.py",
        "divmod(iters or 0, counts)",
        "divmod(0, counts)",
        f"{RUNS}[accumulation, a ragged end]",
    ),
    Break(
        "schedules-of-updates-in-a-window",
        "adapters/mmengine/recipe/group_values.py",
        'return by("micro", schedule) if self.around.counts_micro else schedule',
        "return schedule",
        f"{RUNS}[accumulation over epochs]",
    ),
    Break(
        "a-floor-that-is-multiplied",
        "adapters/mmengine/recipe/group_values.py",
        "proportional = plateau is None and (len(given) == 1 or self._proportional(make, scaled))",
        "proportional = True",
        f"{RUNS}[rules, an absolute floor]",
    ),
    Break(
        "a-momentum-buffer-that-begins-too-early",
        "adapters/mmengine/recipe/optimizers.py",
        'late = not args.get("momentum") and',
        "late = False and",
        f"{RUNS}[a momentum from 0]",
    ),
    Break(
        "an-average-that-forgets-the-window",
        "adapters/mmengine/recipe/hooks.py",
        "(1.0 - momentum) ** power",
        "1.0 - momentum",
        f"{RUNS}[an average over windows]",
    ),
    Break(
        "an-eager-average-in-a-record",
        "engine/recording/tape.py",
        "            return lifted\n",
        "            return other\n",
        "adapters/test_from_torch.py::test_an_average_that_starts_later",
    ),
    Break(
        "a-warm-up-of-the-base-value",
        "adapters/mmengine/curves/legacy.py",
        'return main * factor if field == "lr" else main / factor',
        "return main * factor",
        "adapters/test_mmengine_legacy.py::test_recorded_values[row71]",
    ),
    Break(
        "a-role-that-no-check-knows",
        "core/says.py",
        "or cls.role not in allowed",
        "or cls.role is None",
        "core/test_roles.py::test_any_other_role_is_a_sentence_when_the_class_is_made[cilp]",
    ),
    Break(
        "a-freeze-that-excuses-outside-its-mask",
        "core/checks.py",
        "for name in link.frozen(seen)",
        "for name in link.frozen(index)",
        "core/test_build_checks.py::test_refused[frozen in a mask]",
    ),
    Break(
        "a-branch-that-no-check-enters",
        "core/chain.py",
        "    descends = False  # its links say for themselves\n",
        "",
        "core/test_build_checks.py::test_refused[branches without a sign]",
    ),
    Break(
        "a-users-window-that-nobody-asks",
        "updater/window.py",
        "isinstance(link, KeepsWindow) and link.sums_in_grad()",
        "type(link).__name__ == 'accumulate' and link.sums_in_grad()",
        "core/test_roles.py::test_a_users_window_is_what_accumulate_is[plainly-True-2]",
    ),
    Break(
        "what-an-argument-decides-is-not-asked",
        "core/says.py",
        "return said.get(self.name, self.common)",
        "return self.common",
        "core/test_roles.py::test_a_class_says_it_or_an_argument_decides[per_parameter]",
    ),
    Break(
        "a-mean-square-in-bfloat16",
        "core/tensors.py",
        "return self._zeros(dtype, {torch.float16, torch.bfloat16})",
        "return self._zeros(dtype, {torch.float16})",
        "transforms/test_low_precision.py::test_nu_does_not_stand_still[engine]",
    ),
    Break(
        "a-moment-in-float16",
        "core/tensors.py",
        "return self._zeros(dtype, {torch.float16})",
        "return self._zeros(dtype, set())",
        "transforms/test_low_precision.py::test_the_dtype_of_a_slot_follows_from_that_of_each_parameter[trace]",
    ),
    Break(
        "a-square-that-is-infinite-too-soon",
        "transforms/adam.py",
        "(1 - self.b2) * g * g ",
        "(1 - self.b2) * (g * g) ",
        "transforms/test_low_precision.py::test_adam_is_torchs_at_the_ends_of_float32[adam-2e+19--reference]",
    ),
    Break(
        "weights-as-they-are-given",
        "combinators/accumulate.py",
        "whole = min(size * weight, sys.float_info.max)",
        "whole = 1.0",
        "combinators/test_weighted_windows.py::test_a_hundred_thousand_tokens_on_half_weights[torch.float16]",
    ),
    Break(
        "no-room-for-a-larger-weight",
        "updater/walk.py",
        "bound.make_room(weight)",
        "pass",
        "combinators/test_weighted_windows.py::test_the_mean_is_exact_whatever_the_weights[full-grad-torch.float32-growing]",
    ),
    Break(
        "a-scale-that-falls-to-zero",
        "combinators/amp_scale.py",
        "_LEAST = torch.finfo(torch.float32).tiny",
        "_LEAST = 0.0",
        "combinators/test_loss_scale.py::test_the_scale_has_a_floor[dtype1-65536.0-0.5]",
    ),
    Break(
        "a-tensor-read-once",
        "core/hyper.py",
        "            self.checked(on_host(value), owner)\n            return value\n",
        "            return self.checked(on_host(value), owner)\n",
        "core/test_tensor_hyperparameters.py::test_a_factor_on_a_tensor",
    ),
    Break(
        "a-norm-that-is-kept",
        "engine/recording/host.py",
        "return self.handle(self.note(partial(_spread, fn, (cell,)), (cell,), fn(tensors), reduces=True))",
        "return fn(tensors)",
        "engine/test_again.py::test_norms_are_measured_each_time[first-torch.float64-3]",
    ),
    Break(
        "a-truth-without-a-guard",
        "engine/recording/host.py",
        "        self._guard((cell, True), _still_true if truth else _still_false, cell)\n",
        "",
        "engine/test_replay.py::test_a_step_run_again_is_the_step[accumulate, amp]",
    ),
    Break(
        "a-float-without-a-guard",
        "engine/recording/host.py",
        "        self._guard((cell, False), partial(_still, value), cell)\n",
        "",
        "engine/test_again.py::test_any_pure_link[pinned]",
    ),
    Break(
        "an-override-that-is-no-other-way",
        "engine/replay.py",
        "step.autocast, loss, overrides,",
        "step.autocast, loss,",
        "engine/test_again.py::test_overrides_run_again",
    ),
    Break(
        "a-trace-that-fails-in-silence",
        "engine/engine.py",
        'why = f"recording its numbers failed: {type(error).__name__}: {error}"',
        'why = "the first of their kind"',
        "engine/test_again.py::test_a_trace_that_fails_is_said",
    ),
    Break(
        "a-remainder-with-the-sign-of-what-is-divided",
        "core/operations.py",
        "    return left + b if left != 0 and (b < 0) != (left < 0) else left\n",
        "    return left\n",
        "core/test_functions.py::test_each_kind_of_number_has_torchs_answer[remainder-host]",
    ),
    Break(
        "a-series-one-term-too-short",
        "core/elementary.py",
        "r / 40320.",
        "0 * r",
        "engine/test_elementary.py::test_float32_is_so_near_to_the_exact_value[exp-native]",
    ),
    Break(
        "a-compiler-that-loses-small-numbers",
        "engine/executors/compiled.py",
        "operation.traced or operation.truth",
        "operation.truth",
        "engine/test_elementary.py::test_float32_is_so_near_to_the_exact_value[expm1-compiled]",
    ),
    Break("a-file-is-not-synced", "updater/sealed.py", "os.fsync(file.fileno())", "pass", POWER),
    Break("a-folder-is-not-synced", "updater/sealed.py", "        sync_folder(target.parent)\n", "", POWER),
    Break(
        "a-file-is-written-in-place",
        "updater/sealed.py",
        "os.replace(temporary, target)",
        "target.write_bytes(Path(temporary).read_bytes())",
        POWER,
    ),
    Break(
        "a-checksum-is-not-looked-at",
        "updater/sealed.py",
        "if sealed and not _is_whole(file, size):",
        "if False:",
        "updater/test_files.py::test_every_bit_of_the_seal_and_every_cut_near_it",
    ),
    Break(
        "random-numbers-are-not-saved",
        "checkpoints/randomness.py",
        '"torch": torch.get_rng_state()',
        '"torch": torch.Generator().get_state()',
        "checkpoints/test_resume.py::test_it_goes_on_bit_for_bit[list-7]",
    ),
    Break(
        "a-run-that-has-left-its-way-goes-on",
        "combinators/guard.py",
        "if consecutive > self.max_consecutive:",
        "if False:",
        "combinators/test_guard.py::test_after_too_many_in_a_row_weights_and_state_are_those_before_the_first[nan]",
    ),
    Break(
        "a-bound-that-is-below-a-loss-below-zero",
        "combinators/guard.py",
        "bound = state.loss + (self.loss - 1) * maximum(abs(state.loss), state.gap)",
        "bound = state.loss * self.loss",
        "combinators/test_guard.py::test_losses_below_zero_and_about_zero",
    ),
    Break(
        "the-last-good-file-of-after-it-began",
        "combinators/guard.py",
        'path = state.last_good if state.consecutive > 0 else ""',
        'path = ""',
        "combinators/test_guard.py::test_last_good_is_the_one_of_before_the_first",
    ),
    Break(
        "a-star-that-is-not-carried-over",
        "updater/moving.py",
        'return first + "".join(text + piece for text, piece in zip(texts, rest, strict=True))',
        'return first + "".join(rest)',
        "updater/test_moving.py::test_renamed_parameters_go_on_bit_for_bit[file]",
    ),
    Break(
        "two-names-that-become-one",
        "updater/moving.py",
        "            if first != name:\n",
        "            if False:\n",
        "updater/test_moving.py::test_what_cannot_be_meant_is_refused_and_changes_nothing"
        "[changed2-rename must keep names apart, got 'head.weight' for]",
    ),
    Break(
        "one-updaters-names-for-all",
        "updater/moving.py",
        "{word: given.get(n) for word, given in changed.items() if given}",
        "{word: given[names[0]] for word, given in changed.items() if given}",
        "updater/test_moving.py::test_a_group_is_renamed_by_updater[file]",
    ),
    Break(
        "a-full-mean-with-a-count-of-nothing",
        "updater/fitting.py",
        "        if not chosen:\n            return out\n",
        "        return out\n",
        "updater/test_moving.py::test_adam_to_lion_to_adam",
    ),
    Break(
        "a-link-that-takes-from-any-other",
        "updater/fitting.py",
        "[s for s in left if wanted & set(self._kinds(s).values())]",
        "[s for s in left if self._kinds(s)]",
        "updater/test_moving.py::test_a_sum_is_no_mean",
    ),
    Break(
        "an-order-of-links-that-is-not-said",
        "core/config.py",
        "    if before != now:\n",
        "    if False:\n",
        "updater/test_moving.py::test_the_difference_of_two_chains_and_no_more[saved3-code3-lines3]",
    ),
    Break(
        "labels-in-the-order-of-the-other",
        "adapters/taking/of_optax.py",
        "next((address for address in alike if {*links[address][slots[0]]} == there), next(iter(alike), None))",
        "next(iter(alike), None)",
        "adapters/test_taking_wrapped.py::test_what_wraps_a_rule_of_optax_goes_on_here[two of one rule]",
    ),
    Break(
        "a-tracker-that-begins-anew",
        "adapters/taking/of_torch.py",
        'int(scaler["_growth_tracker"])',
        "0",
        "adapters/test_taking_wrapped.py::test_a_loss_scaler_goes_on_here[bad0]",
    ),
    Break(
        "a-state-in-the-middle-of-an-update",
        "updater/journal.py",
        "if self.walking and owner not in _ANY_TIME and self._at_work():",
        "if False:",
        f"{APART}[raising]",
    ),
    Break(
        "a-window-that-stays-behind-its-weights",
        "updater/window.py",
        "if held is None or not held.scaled or all(",
        "if True or all(",
        f"{APART}[model]",
    ),
    Break(
        "a-gradient-without-values",
        "updater/gradients.py",
        "    _check_place(name, grad, parameter)\n    if not (grad",
        "    if not (grad",
        f"{APART}[model]",
    ),
    Break(
        "a-loss-that-is-looked-at-too-late",
        "updater/window.py",
        "if loss.layout is not torch.strided:",
        "if False:",
        f"{APART}[model]",
    ),
)
