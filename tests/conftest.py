"""The package's tests run in float64 on two forced CPU devices (design.md, "Numbers people can trust")."""

import atexit
import gc
import os
import shutil
import tempfile

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
# Compiling is most of the suite's time: what is tested does not depend on the optimisations of XLA and LLVM. Processes
# that tests start inherit it.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# What one of these processes has compiled the others load; nothing is kept from one run of the suite to the next.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    compiled = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jaxleak-tests-")
    atexit.register(shutil.rmtree, compiled, ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
# Ray lowers its workers' priority by 15: beside other tests they would hardly run, and tests that wait for them fail.
os.environ.setdefault("RAY_worker_niceness", "0")

import jax

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_num_cpu_devices", 2)

pytest_plugins = ["tests.fixtures", "tests.commands", "tests.processes", "tests.sweeps"]  # their fixtures

# Marked `core`: what has to hold for every declared version of Python, jax and the rest, in some three minutes. These
# files, without the tests whose names begin so ...
CORE = {
    "test_cli": ("test_plot",),
    "test_compiler": (),
    "test_conv": ("test_both_equal", "test_dilated", "test_kernels_of_several_images_and_networks[6-40"),
    "test_data": ("test_cifar100_index",),
    "test_engine": (
        "test_other_lanes",
        "test_lanes_change_nothing[a network per trial",
        "test_lanes_change_nothing[one network-lanes 1,",
        "test_lanes_change_nothing[one network-lanes 50,",
    ),
    "test_environment": (),
    "test_metrics": (),
    "test_llvm": ("test_without_kernels", "test_a_factored_gradient_is_the_gradient[3"),
    "test_readme": ("test_every_name", "test_the_python_example"),
    "test_solvers": (),
    "test_trial": ("test_what_is", "test_thresholds_mean", "test_networks_", "test_a_network_follows", "test_given"),
}
# ... and these tests alone of other files: what adapting, drawing and storing ask of libraries.
CORE_ALONE = {
    "test_models_own": ("test_an_attack_from_end_to_end[linen", "test_nnx_modules_draw", "test_lifted_layers"),
    "test_figures": ("test_grid_holds",),
    "test_store": ("test_flipped_bits",),
}

# Marked `slow`: further cases of what a quicker case of the same file checks, and kills of whole processes of which
# one kind is left in the suite. Tests whose names begin so.
FURTHER = {
    "test_vit": (
        "test_initialisations[flax",
        "test_initialisations[uniform]",
        "test_vit_equals_torch[{'encoder'",
    ),
    "test_candidate": (
        "test_dlg_rebuilds_vectors[bias",
        "test_box_and_priors",
    ),
    "test_models": (
        "test_save_and_load_give_the_same_statistics[inception3",
        "test_activations_are_torchs_in_two_derivatives[elu",
        "test_save_and_load_give_the_same_parameters[resnet152",
        "test_save_and_load_give_the_same_parameters[resnet101",
        "test_save_and_load_give_the_same_parameters[resnet34",
        "test_save_and_load_give_the_same_parameters[resnet32-10",
        "test_save_and_load_give_the_same_parameters[inception3",
    ),
    "test_defences": (
        "test_over_a_trial_axis_it_is_a_loop_and_stays_in_float32[laplace",
        "test_over_a_trial_axis_it_is_a_loop_and_stays_in_float32[error",
        "test_over_a_trial_axis_it_is_a_loop_and_stays_in_float32[prune-layer",
        "test_soteria_hides_the_features_that_torch_finds[3",
    ),
    "test_april": ("test_the_attack_recovers_photos_and_their_labels",),
    "test_closed_forms": tuple(
        f"test_one_step_is_read_as_a_gradient[{case}"
        for case in ("spear-{'steps': 1, 'm", "spear-{'e", "april-{'steps': 1, 'm", "april-{'e", "april-{'steps': 1}")
    ),
    "test_likelihood": ("test_the_example_of_the_readme_runs",),
    "test_bench": ("test_a_measurement_in_processes", "test_a_phase_moves_no_further_than_it_should[jaxleak-cosine]"),
    "test_checkpoint": (
        "test_a_resumed_run_has_the_networks_it_began_with[per-image]",
        "test_another_training_is_done_anew[changes2]",
        "test_another_training_is_done_anew[changes1",
    ),
    "test_client": (
        "test_updates_equal_those_of_pytorch_scripts[weight decay of",
        "test_updates_equal_those_of_pytorch_scripts[not clipped",
        "test_updates_equal_those_of_pytorch_scripts[dampening",
        "test_updates_equal_those_of_pytorch_scripts[a schedule]",
        "test_the_surrogate_model_is_exact",
        "test_updates_and_objectives_equal_torch[two epochs in local batches, Adam",
        "test_updates_and_objectives_equal_torch[two clients",
        "test_updates_and_objectives_equal_torch[three steps",
        "test_updates_and_objectives_equal_torch[one step of Adam",
        "test_updates_and_objectives_equal_torch[local batches",
    ),
    "test_conv": (
        "test_kernels_of_several_images_and_networks[5-17-1-33-2-float32",
        "test_kernels_of_several_images_and_networks[11-1-3-1-1-float64",
        "test_kernels_of_several_images_and_networks[32-3-5-12-2-float64",
        "test_kernels_of_several_images_and_networks[8-12-5-12-1-float64",
        "test_dilated_grouped_and_transposed",
        "test_kernels_of_several_images_and_networks[16",
        "test_kernels_of_several_images_and_networks[6-40-3-70-1-float64",
        "test_kernels_of_several_images_and_networks[8-12-5-12-1-float32",
    ),
    "test_convnet": (
        "test_initialisations[torch",
        "test_convnet_equals_torch[group norm",
        "test_convnet_equals_torch[eval",
    ),
    "test_dense": tuple(
        f"test_equals_the_plain_product_and_its_derivatives[{shape}"
        for shape in ("768", "32-", "33-", "31-", "588", "1-5-0", "40-500-")
    ),
    "test_densenet": (
        "test_a_small_densenet_equals_torch[cifar stem]",
        "test_a_small_densenet_equals_torch[imagenet stem, eval",
        "test_narrow_densenet121_equals_torch_through_a_file[True",
        "test_a_small_densenet_equals_torch[imagenet stem]",
        "test_a_small_densenet_equals_torch[group norm",
        "test_narrow_densenet121_equals_torch_through_a_file[False",
    ),
    "test_engine": (
        "test_lanes_change_nothing[a network per trial-lanes 50",
        "test_other_lanes_in_the_middle_of_a_run_change_nothing[a network",
        "test_lanes_change_nothing[a network per trial-lanes 1,",
        "test_lanes_change_nothing[a network per trial-lanes 3,",
        "test_lanes_change_nothing[one network-lanes 1,",
        "test_lanes_change_nothing[one network-lanes 50,",
        "test_lanes_change_nothing[one network-lanes 3,",
        "test_lanes_change_nothing[a network per trial-lanes 2,",
    ),
    "test_inception": (
        "test_a_block_equals_torch[c-train",
        "test_a_block_equals_torch[auxiliary",
        "test_a_narrow_network_equals_torch_through_a_file",
        "test_auxiliary_logits",
        *(f"test_a_block_equals_torch[{block}-train" for block in ("a", "b", "d", "e", "stem")),
        *(f"test_a_block_equals_torch[{block}-eval" for block in ("a", "c", "d", "e", "stem")),
        "test_group_norm",
    ),
    "test_memory": ("test_bytes_per_lane_are_what_a_lane_takes",),
    "test_llvm": (
        "test_without_kernels_the_same",
        "test_advance_is_append_and_direction[5-37-float32",
        "test_advance_is_append_and_direction[1-3",
        "test_advance_is_append_and_direction[18-16-float32",
        "test_without_kernels_xla_computes_the_same_and_one_line_says_so[another",
        "test_a_factored_gradient_is_the_gradient[3",
    ),
    "test_first_order": ("test_vmap_equals_one_at_a_time[float32",),
    "test_object_store": (
        "test_killed_resumed_and_read_back",
        "test_trained_networks_are_kept",
    ),
    "test_models_own_layout": (
        "test_an_order_that_cannot_be_told_is_refused[up",
        "test_an_order_that_cannot_be_told_is_refused[nnx-up",
        "test_one_file_means_the_same_however_maps_are_flattened[nnx",
        "test_one_file_means_the_same_however_maps_are_flattened[linen",
        "test_the_program_covers_constants",
        "test_an_order_that_cannot_be_told_is_refused[by-hand",
        "test_an_order_that_cannot_be_told_is_refused[scaled",
    ),
    "test_models_own": (
        "test_an_nnx_twin",
        "test_an_attack_from_end_to_end[nnx",
        "test_equal_models_are_equal_and_read",
        "test_an_adapted_model_computes_what_the_stock_one_does[mixed",
        "test_nnx_modules_run_in_evaluation",
    ),
    "test_figures": (
        "test_draw_all_draws_every_figure[one trial",
        "test_draw_all_draws_every_figure[no snapshots",
        "test_draw_all_draws_every_figure[no success",
        "test_draw_all_draws_every_figure[two attacks",
        "test_convergence_has_a_pair_of_panels_for_each_attack[2",
        "test_a_grid_of_noise_is_stored",
        "test_full_grid_stays_small_on_the_disk_and_within_a_page[28-",
        "test_full_grid_stays_small_on_the_disk_and_within_a_page[32-",
        "test_full_grid_stays_small_on_the_disk_and_within_a_page[224-",
    ),
    "test_page": (
        "test_every_threat_model_has_a_page[clients",
        "test_every_threat_model_has_a_page[fields",
        "test_every_threat_model_has_a_page[local steps",
        "test_snapshots_of_some_seeds_only",
    ),
    "test_oracles": ("test_lenet_goldens_equal_torch[rgb32",),
    "test_ray": (
        "test_one_refused_worker_does_not_end_the_run",
        "test_trials_that_kill_their_workers",
        "test_a_worker_with_other_settings",
    ),
    "test_store": (
        "test_killed_at_a_rename[1-False",
        "test_killed_at_a_rename[2-True",
        "test_sigkill_at_random_moments",
    ),
    "test_resnet": (
        "test_weights_have_torchs_names_and_come_back[resnet18",
        "test_logits_update_and_attack_gradient_equal_torch[bottlenecks",
        "test_logits_update_and_attack_gradient_equal_torch[group norm",
        "test_trials_at_once_equal",
    ),
    "test_shard": (
        "test_two_processes_at_once",
        "test_three_shards_one_missing",
    ),
    "test_sweep": (
        "test_every_solver_runs[Adam",
        "test_relative_objective",
        "test_ctrl_c_keeps_what_is_finished_and_the_same_sweep_completes",
        "test_every_solver_runs[LBFGS(",
        "test_lanes_change_nothing[1]",
        "test_networks[per-image",
        "test_more_images_attacks_and_seeds",
        "test_lanes_change_nothing[12",
        "test_lenet_on_photos",
        "test_every_solver_runs[OptaxLBFGS",
        "test_every_solver_runs[JaxoptLBFGS(line_search='fixed'",
    ),
    "test_threat_model": (
        "test_layers_restrict_the_objective[l2",
        "test_an_attacker_who_knows_of_pruning_leaves_those_entries_out[top-k",
        "test_an_attacker_who_knows_of_pruning_leaves_those_entries_out[prune-layer",
        "test_defences_are_met_as_given[per-victim",
        "test_the_analytic_attack_recovers_a_photo[{'normalise'",
        "test_the_box_keeps_pixels_and_leaves_labels[normalised",
        "test_other_numbers_of_dummies[3",
        "test_label_strategies_in_a_trial[steps",
        "test_whatever_the_scale_the_published_objective_is_reported[l2, weighted",
        "test_whatever_the_scale_the_published_objective_is_reported[cosine, weighted",
        "test_label_strategies_in_a_trial[clients",
    ),
    "test_trial": (
        *(
            f"test_{name}[{case}"
            for name in (
                *("trial_follows_torch", "counters_equal_torchs", "trial_ends_when_torch_only_repeats_itself"),
                *("label_is_torchs", "threshold_is_noted_at_its_first_crossing", "traces_are_blank_after_the_end"),
                *("mse_trace_belongs_to_the_snapshots", "the_final_candidate_fills_later_snapshots"),
                "update_norm_is_the_shared_updates",
            )
            for case in ("gray12", "odd18", "rgb16", "odd11")
        ),
        "test_what_is_reported_is_the_published_objective[{'scale': 'relative'",
        "test_what_is_reported_is_the_published_objective[{'tv'",
        "test_what_is_minimised_is_its_formula[none",
        "test_what_is_minimised_is_its_formula[relative",
    ),
    "test_update": (
        "test_a_resnet_from_pytorch",
        "test_local_steps_from_pytorch",
        "test_labels_go_with",
        "test_a_wrong_network",
    ),
    "test_audit": (
        "test_another_sign_and_another_scale",
        "test_a_clipped_gradient",
        "test_an_assumption_that_cannot",
        "test_another_loss",
        "test_risk_from_the_command_line",
        "test_the_randomised_information",
        "test_a_closed_form_that_applies_is_tried_without_being_asked[gradient",
    ),
    "test_inputs": ("test_words_that_cannot_be_written[models --only",),
    "test_worker": (
        "test_blocks_of_two_attacks",
        "test_memory_that_runs_out_halves",
    ),
    "test_resume": (
        "test_ctrl_c_says_how_to_continue",
        "test_killed_twice",
    ),
    "test_page_browser": (
        "test_it_fits_the_screen[390-light",
        "test_it_fits_the_screen[1280-dark",
    ),
    "test_loss": (
        "test_updates_of_losses_equal_pytorch_scripts_in_float32[weights and",
        "test_updates_of_losses_equal_pytorch_scripts_in_float32[one logit",
        "test_rules_that_hold_read_the_label_of_one_image[sum",
        "test_rules_that_hold_read_the_label_of_one_image[weights",
        "test_rules_that_hold_read_the_labels_of_batches[sum",
        "test_labels_that_are_read_explain_local_steps[several",
        "test_an_update_of_several_labels_is_recovered_with_them",
        "test_an_attack_recovers_the_image_and_what_the_loss_was_given[one logit",
        "test_an_attack_recovers_the_image_and_what_the_loss_was_given[own",
        "test_an_attack_recovers_the_image_and_what_the_loss_was_given[numbers",
        *(
            f"test_an_attack_recovers_the_image_and_what_the_loss_was_given[{name}"
            for name in ("bce of", "squared", "smoothing", "weights", "sum", "two")
        ),
        *(f"test_labels_that_are_read_explain_local_steps[{name}" for name in ("one logit", "smoothing")),
        *(
            f"test_updates_of_losses_equal_pytorch_scripts_in_float32[{name}"
            for name in ("its", "label", "class", "one weighted", "several weighted", "squared error, sum")
        ),
    ),
    "test_objectives": (
        "test_update_equals_torch[odd11",
        "test_update_equals_torch[rgb16",
        "test_update_equals_torch[odd18",
        "test_dlg_objective_and_gradient_equal_torch[odd",
        "test_dlg_objective_and_gradient_equal_torch[rgb16",
        "test_dlg_objective_and_gradient_equal_torch[gray12",
        "test_batchnorm_prior_and_its_gradient_equal_torch[False",
        "test_the_cosine_can_be_derived_twice_and_with_respect_to_either[False",
        "test_layers_of_weight_zero_have_no_influence[none-cosine",
    ),
    "test_data": ("test_cifar100_index_20319",),
    "test_files": (
        "test_tied_tensors_may_have_both_names_or_one[pt-a",
        "test_tied_tensors_may_have_both_names_or_one[safetensors-b",
        "test_tied_tensors_may_have_both_names_or_one[save_model-a",
        "test_tied_tensors_may_have_both_names_or_one[save_model-b",
        "test_prefixes_are_left_out[module._orig",
        "test_prefixes_are_left_out[_module",
        "test_attention_equals_torchs_in_float64[False",
        "test_networks_before_and_after[one",
        "test_an_update_of_each_kind_fits[npz",
        "test_two_parameters_that_the_file_ties_are_one[save_model",
        "test_updates_of_other_precision_are_rounded_and_no_more[float64",
    ),
    "test_solvers": (
        "test_vmap_equals_one_at_a_time[jaxopt-lbfgs, hager",
        "test_vmap_equals_one_at_a_time[jaxopt-lbfgs, fixed",
        "test_first_step_reports_the_start[jaxopt-lbfgs, hager",
        "test_lbfgs_stalls_at_a_minimum[jaxopt-lbfgs, hager",
    ),
    "test_analytic": (
        "test_image_and_every_layers_input_of_an_mlp[hidden0",
        "test_image_and_every_layers_input_of_an_mlp[hidden1",
    ),
    "test_lbfgs": (
        "test_the_standard_problems_have_scipys_answers[wood",
        "test_the_standard_problems_have_scipys_answers[powell",
        "test_the_standard_problems_have_scipys_answers[beale",
        "test_what_is_reported_only_goes_down[wood",
        "test_what_is_reported_only_goes_down[powell",
        "test_what_is_reported_only_goes_down[beale",
    ),
    "test_spear": (
        "test_inputs_and_slopes_of_a_layer[1.0-8",
        "test_inputs_and_slopes_of_a_layer[1.0-4",
    ),
    "test_priors": (
        "test_an_attack_with_patches_keeps",
        "test_the_prior_is_minus_the_mean_over_patches[14",
        "test_trials_at_once_equal_a_loop[norm",
        "test_flat_images_have_no_total_variation[shape1",
        "test_flat_images_have_no_total_variation[shape2",
    ),
    "test_labels": (
        "test_one_label_is_right_behind_sigmoids[torch",
        "test_probes_are_images_and_differ[shape1",
        "test_probes_are_images_and_differ[shape2",
    ),
    "test_moments": ("test_nan_in_one_lane_leaves_the_others[2",),
    "test_training": ("test_gradients_are_defended[gaussian",),
}


def pytest_collection_finish():
    """Tracing makes millions of objects that live: looking through them all for garbage takes 5 % of the time."""
    gc.freeze()
    gc.set_threshold(200_000, 20, 50)


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items):
    for item in items:
        left_out, alone = CORE.get(item.path.stem), CORE_ALONE.get(item.path.stem, ())
        if item.name.startswith(alone) or (left_out is not None and not item.name.startswith(left_out)):
            item.add_marker(pytest.mark.core)
        if item.name.startswith(FURTHER.get(item.path.stem, ())):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def _nothing_kept_from_what_was_patched(request):
    """A test that puts other code in place must trace it, and leave nothing of it to others."""
    from jaxleak.engine.programs import forget_kept  # after what is set above

    patches = "monkeypatch" in request.fixturenames
    if patches:
        forget_kept()
    yield
    if patches:
        forget_kept()
